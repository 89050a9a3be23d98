#include "session/library.hpp"

#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "errors.hpp"

namespace star {
namespace {

// The first ONNX Runtime that runs opset 24 on the CPU.
constexpr std::pair<int, int> kOldest{1, 24};
constexpr const char* kRemedy =
    "give the path of a libonnxruntime of 1.24 or newer, or set STAR_ONNXRUNTIME to it (the pip package "
    "onnxruntime has one in onnxruntime/capi)";

std::vector<std::string> names_of(const std::filesystem::path& path) {
  if (!path.empty()) return {path.string()};
  const char* given = std::getenv("STAR_ONNXRUNTIME");
  if (given != nullptr && *given != '\0') return {given};
#ifdef __APPLE__
  return {"libonnxruntime.1.dylib", "libonnxruntime.dylib"};
#else
  return {"libonnxruntime.so.1", "libonnxruntime.so"};
#endif
}

void* open_first(const std::vector<std::string>& names) {
  std::string failure;
  for (const std::string& name : names) {
    if (void* handle = ::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) return handle;
    if (failure.empty()) failure = ::dlerror();
  }
  throw PlatformError("ONNX Runtime does not load: " + failure + "; " + kRemedy);
}

OnnxRuntimeLibrary load(const std::filesystem::path& path) {
  const std::vector<std::string> names = names_of(path);
  void* handle = open_first(names);
  using GetBase = const OrtApiBase* (*)();
  const auto get_base = reinterpret_cast<GetBase>(::dlsym(handle, "OrtGetApiBase"));
  if (get_base == nullptr) throw PlatformError(names.front() + " is no ONNX Runtime; " + kRemedy);
  OnnxRuntimeLibrary library{nullptr, get_base()->GetVersionString()};
  std::pair<int, int> version{0, 0};
  std::sscanf(library.version.c_str(), "%d.%d", &version.first, &version.second);
  // Asked for only now: an older library prints an error of its own.
  if (version >= kOldest) library.api = get_base()->GetApi(ORT_API_VERSION);
  if (library.api == nullptr) {
    throw PlatformError(names.front() + " is ONNX Runtime " + library.version + ", expected at least 1.24; " +
                        kRemedy);
  }
  return library;
}

}  // namespace

const OnnxRuntimeLibrary& onnxruntime_library(const std::filesystem::path& path) {
  static std::mutex mutex;
  static std::optional<OnnxRuntimeLibrary> loaded;
  const std::scoped_lock lock(mutex);
  if (!loaded) loaded = load(path);
  return *loaded;
}

}  // namespace star
