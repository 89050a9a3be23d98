#include "session/tensorrt/runtime.hpp"

#include <dlfcn.h>

#include <cctype>
#include <cstdlib>
#include <optional>
#include <utility>

#include "errors.hpp"

namespace star {
namespace {

#ifdef STAR_TENSORRT_RTX
constexpr std::string_view kBackend = kTensorRTRtx;
constexpr std::pair<int, int> kOldest{1, 7};
constexpr const char* kLibrary = "libtensorrt_rtx.so";
constexpr const char* kPackage = "tensorrt-rtx, in tensorrt_rtx_libs";
#else
constexpr std::string_view kBackend = kTensorRT;
constexpr std::pair<int, int> kOldest{10, 16};  // ONNX opset 24 and in-place KV updates came with it
constexpr const char* kLibrary = "libnvinfer.so";
constexpr const char* kPackage = "tensorrt, in tensorrt_libs";
#endif
// More than any failure has; an engine that repeats itself must not fill the memory.
constexpr std::size_t kMostErrors = 1024;

std::string remedy() {
  return std::string("give the path of its library, or set STAR_TENSORRT to it (the pip package ") +
         kPackage + ", has one)";
}

// What the system's loader says of the last failure.
std::string loader_error() {
  const char* text = ::dlerror();
  return text == nullptr ? "no reason given" : text;
}

void* open_library(const std::filesystem::path& path) {
  const char* given = std::getenv("STAR_TENSORRT");
  std::vector<std::string> names{std::string(kLibrary) + "." + std::to_string(NV_TENSORRT_MAJOR), kLibrary};
  if (given != nullptr && *given != '\0') names = {given};
  if (!path.empty()) names = {path.string()};
  std::string failure;
  for (const std::string& name : names) {
    if (void* handle = ::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) return handle;
    if (failure.empty()) failure = loader_error();
  }
  throw PlatformError(std::string(kBackend) + " does not load: " + failure + "; " + remedy());
}

int number_of(void* library, const char* name) {
  using GetNumber = std::int32_t (*)();
  const auto get = reinterpret_cast<GetNumber>(::dlsym(library, name));
  if (get == nullptr) {
    throw PlatformError("the library has no " + std::string(name) + " and so is no " + std::string(kBackend) +
                        "; " + remedy());
  }
  return get();
}

TensorRTLibrary load(const std::filesystem::path& path) {
  void* handle = open_library(path);
  // Objects of another major version have other tables of functions: to call one would end the process.
  const int major = number_of(handle, "getInferLibMajorVersion");
  if (major != NV_TENSORRT_MAJOR) {
    throw PlatformError("TensorRT's library is of major version " + std::to_string(major) +
                        ", this program was built with headers of " + std::string(kBackend) + " " +
                        std::to_string(NV_TENSORRT_MAJOR) + "; " + remedy());
  }
  const int minor = number_of(handle, "getInferLibMinorVersion");
  TensorRTLibrary library{handle, std::to_string(major) + '.' + std::to_string(minor)};
  for (const char* name : {"getInferLibPatchVersion", "getInferLibBuildVersion"}) {
    library.version += '.';
    library.version += std::to_string(number_of(handle, name));
  }
  if (std::pair(major, minor) < kOldest) {
    throw PlatformError(std::string(kBackend) + " " + library.version + " is too old, " +
                        std::to_string(kOldest.first) + "." + std::to_string(kOldest.second) +
                        " is needed; " + remedy());
  }
  return library;
}

}  // namespace

std::string_view tensorrt_backend() { return kBackend; }

void TensorRTLog::log(Severity severity, const char* text) noexcept {
  if (severity > Severity::kERROR) return;
  try {
    const std::scoped_lock lock(mutex_);
    if (errors_.size() < kMostErrors) errors_.emplace_back(text);
  } catch (const std::exception&) {  // TensorRT cannot be told that there was no memory for its words
  }
}

std::size_t TensorRTLog::heard() const {
  const std::scoped_lock lock(mutex_);
  return errors_.size();
}

std::string TensorRTLog::first_error(std::size_t since) const {
  const std::scoped_lock lock(mutex_);
  if (since >= errors_.size()) return "it gave no reason";
  std::string text;
  for (const char c : errors_[since]) {
    const bool is_space = std::isspace(static_cast<unsigned char>(c)) != 0;
    if (!is_space) text += c;
    if (is_space && !text.empty() && text.back() != ' ') text += ' ';
  }
  return text;
}

TensorRTLog& tensorrt_log() {
  static TensorRTLog log;
  return log;
}

const TensorRTLibrary& load_tensorrt(const std::filesystem::path& path) {
  static std::mutex mutex;
  static std::optional<TensorRTLibrary> loaded;
  const std::scoped_lock lock(mutex);
  if (!loaded) loaded = load(path);
  return *loaded;
}

Runtime::Runtime(const TensorRTLibrary& library, const std::string& built_by,
                 const TensorRTOptions& options) {
  TensorRTLog& log = tensorrt_log();
  const std::size_t heard = log.heard();
  using Create = void* (*)(void*, std::int32_t);
  const auto create = reinterpret_cast<Create>(::dlsym(library.handle, "createInferRuntime_INTERNAL"));
  nvinfer1::ILogger* logger = &log;
  if (create != nullptr) {
    runtime_.reset(static_cast<nvinfer1::IRuntime*>(create(logger, NV_TENSORRT_VERSION)));
  }
  if (!runtime_ || log.heard() != heard) {
    static_cast<void>(runtime_.release());  // to delete one that could not start ends the process
    throw PlatformError(std::string(kBackend) + " " + library.version +
                        " cannot start: " + log.first_error(heard));
  }
#ifndef STAR_TENSORRT_RTX
  if (built_by == library.version) return;
  if (options.lean_library.empty()) {
    throw PlatformError("engines of tensorrt " + built_by +
                        " need its lean runtime here, found none; run: pip " +
                        "install tensorrt-lean==" + built_by + ", and give the path of its libnvinfer_lean");
  }
  lean_.reset(runtime_->loadRuntime(options.lean_library.c_str()));
  if (!lean_) {
    throw PlatformError("the lean runtime " + built_by + " does not load: " + log.first_error(heard));
  }
#else
  static_cast<void>(built_by);
  static_cast<void>(options);
#endif
}

void load_plugins(const TensorRTLibrary& library, const EngineFacts& facts, const TensorRTOptions& options) {
  if (facts.plugins != "library") return;
  if (options.plugin_library.empty()) {
    throw SettingsError("these engines call a plugin library; give its path with " +
                        option("plugin_library"));
  }
  const std::size_t heard = tensorrt_log().heard();
  using GetRegistry = nvinfer1::IPluginRegistry* (*)();
  const auto get = reinterpret_cast<GetRegistry>(::dlsym(library.handle, "getPluginRegistry"));
  if (get == nullptr || get()->loadLibrary(options.plugin_library.c_str()) == nullptr) {
    throw PlatformError(options.plugin_library.string() + " is no TensorRT plugin library that loads here: " +
                        tensorrt_log().first_error(heard) + "; build it as docs/kernels.md says");
  }
}

}  // namespace star
