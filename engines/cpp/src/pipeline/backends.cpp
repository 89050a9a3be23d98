#include "pipeline/backends.hpp"

#include <array>

#include "errors.hpp"
#include "session/onnxruntime.hpp"

namespace star {
namespace {

constexpr std::array<std::string_view, 1> kBackends{"onnxruntime"};

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
  OnnxRuntimeOptions how;
  how.library = options.onnxruntime;
  how.threads = options.threads;
  return open_onnxruntime(bundle, how);
}

}  // namespace star
