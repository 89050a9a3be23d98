// Any ONNX Runtime of this machine, loaded while the program runs.
#pragma once

#include <filesystem>
#include <string>

struct OrtApi;

namespace star {

struct OnnxRuntimeLibrary {
  const OrtApi* api = nullptr;
  std::string version;
};

// Loads `path`, or what STAR_ONNXRUNTIME names, or what the system's loader finds. It stays loaded: a process
// has one. Throws PlatformError if there is none, or it is too old.
const OnnxRuntimeLibrary& onnxruntime_library(const std::filesystem::path& path = {});

}  // namespace star
