// ONNX Runtime on the CPU.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>

#include "bundle/bundle.hpp"
#include "session/session.hpp"

namespace star {

struct OnnxRuntimeOptions {
  std::filesystem::path library;  // see onnxruntime_library
  std::optional<int> threads;     // for one operator; all cores by default
  bool exact = false;             // multiply quantised weights by activations that are not rounded: slower
  bool spinning = false;          // let threads wait busily, also those of a graph that is done
};

// Loads the graphs. Throws PlatformError if there is no ONNX Runtime, BundleError if it cannot load a graph.
std::unique_ptr<Session> open_onnxruntime(const Bundle& bundle, const OnnxRuntimeOptions& options = {});

}  // namespace star
