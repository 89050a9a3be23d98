#include "pipeline/backends.hpp"

#include <array>

#include "errors.hpp"
#include "session/onnxruntime.hpp"
#include "session/tensorrt.hpp"

namespace star {
namespace {

constexpr std::string_view kOnnxRuntime = "onnxruntime";
constexpr std::array<std::string_view, 3> kBackends{kOnnxRuntime, "tensorrt", "tensorrt-rtx"};

}  // namespace

void check_options(const Options& options) {
  if (options.threads && *options.threads < 1) {
    throw SettingsError(option("threads") + " must be at least 1, got " + std::to_string(*options.threads));
  }
  std::string names;
  for (const std::string_view name : kBackends) {
    if (name == options.backend) return;
    names.append(names.empty() ? "" : ", ").append(name);
  }
  throw SettingsError("unknown backend " + options.backend + "; backends are " + names);
}

std::unique_ptr<Session> open_session(const Bundle& bundle, const Options& options) {
  if (options.backend != kOnnxRuntime) {
    if (const std::string_view built = tensorrt_backend(); !built.empty() && built != options.backend) {
      throw PlatformError("this library was built for backend " + std::string(built) + ", not for " +
                          options.backend + "; configure it with -DTENSORRT_ROOT of that one");
    }
    TensorRTOptions how;
    how.plugin_library = options.plugin_library;
    return open_tensorrt(bundle, how);
  }
  OnnxRuntimeOptions how;
  how.library = options.onnxruntime;
  how.threads = options.threads;
  return open_onnxruntime(bundle, how);
}

}  // namespace star
