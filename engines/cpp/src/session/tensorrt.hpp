// TensorRT or TensorRT-RTX on the first visible GPU: the one whose headers the library was built with.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string_view>

#include "bundle/bundle.hpp"
#include "session/session.hpp"

namespace star {

struct TensorRTOptions {
  std::filesystem::path library;       // else what STAR_TENSORRT names, or the system's loader finds
  std::filesystem::path cuda_library;  // the CUDA runtime; else what STAR_CUDART names, or the loader finds
  // Compiles the kernel of greedy sampling; else what STAR_NVRTC names, or the loader finds. Without one
  // logits are copied to the host, which gives the same tokens later.
  std::filesystem::path nvrtc_library;
  std::filesystem::path plugin_library;  // of engines that were built with one
  std::filesystem::path lean_library;    // the lean runtime of version-compatible engines of another version
  bool cuda_graph = true;                // whether decode steps run as a CUDA graph
  // Bytes of weights to keep on the GPU, for engines that stream them; as many as fit by default.
  std::optional<std::int64_t> weight_budget;
};

// `tensorrt` or `tensorrt-rtx`; empty where the library was built without TensorRT's headers.
std::string_view tensorrt_backend();

// Loads the bundle's engines. Throws PlatformError if TensorRT, the driver, the GPU or its memory is missing,
// BundleError if the engines are missing or do not fit this machine or the contract, SettingsError if they
// need a plugin library and none is given.
std::unique_ptr<Session> open_tensorrt(const Bundle& bundle, const TensorRTOptions& options = {});

}  // namespace star
