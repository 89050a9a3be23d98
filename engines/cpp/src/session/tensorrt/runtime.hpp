// The TensorRT of this machine, loaded while the program runs, and what it says.
#pragma once

#include <NvInferRuntime.h>

#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "session/engine_facts.hpp"
#include "session/tensorrt.hpp"

namespace star {

// Keeps the errors that TensorRT logs, oldest first; the first one says why, others follow from it.
class TensorRTLog : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* text) noexcept override;
  std::size_t heard() const;
  // The first error after the first `since` ones; `it gave no reason` where there is none.
  std::string first_error(std::size_t since) const;

 private:
  mutable std::mutex mutex_;
  std::vector<std::string> errors_;
};

struct TensorRTLibrary {
  void* handle = nullptr;
  std::string version;  // such as `10.16.0.0`
};

// Every TensorRT object is given this log, which outlives them.
TensorRTLog& tensorrt_log();

// Loads TensorRT, once for the process; it is of the major version of the headers, and not too old. Throws
// PlatformError.
const TensorRTLibrary& load_tensorrt(const std::filesystem::path& path);

// What loads engines of one TensorRT version; the second runtime is that of a lean library that the first
// loaded.
class Runtime {
 public:
  // Call it only where there is a device. Throws PlatformError if TensorRT cannot start, or engines of the
  // version `built_by` lack the lean runtime that they need here.
  Runtime(const TensorRTLibrary& library, const std::string& built_by, const TensorRTOptions& options);
  nvinfer1::IRuntime& get() const { return lean_ ? *lean_ : *runtime_; }

 private:
  std::unique_ptr<nvinfer1::IRuntime> runtime_, lean_;
};

// Loads the plugin library of engines that call one; those with compiled-in kernels need none.
void load_plugins(const TensorRTLibrary& library, const EngineFacts& facts, const TensorRTOptions& options);

}  // namespace star
