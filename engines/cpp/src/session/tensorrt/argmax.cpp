#include "session/tensorrt/argmax.hpp"

#include <dlfcn.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "argmax_kernel.hpp"  // from engines/tensorrt/argmax.cu
#include "errors.hpp"

namespace star {
namespace {

constexpr unsigned kThreads = 512;  // of a block, as in the source
constexpr const char* kName = "star_argmax";

// NVRTC's functions, as its manual declares them: its header is in no package that the build needs otherwise.
struct Nvrtc {
  using Program = struct _nvrtcProgram*;

  int (*nvrtcCreateProgram)(Program*, const char*, const char*, int, const char* const*, const char* const*);
  int (*nvrtcCompileProgram)(Program, int, const char* const*);
  int (*nvrtcGetCUBINSize)(Program, std::size_t*);
  int (*nvrtcGetCUBIN)(Program, char*);
  int (*nvrtcDestroyProgram)(Program*);
  const char* (*nvrtcGetErrorString)(int);
};

template <typename Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  if (function == nullptr) throw PlatformError(std::string("NVRTC has no ") + name);
}

// NVRTC looks for a library of its own by name alone, where the loader may not find it.
void load_builtins(const std::filesystem::path& folder) {
  std::error_code failure;
  for (const auto& entry : std::filesystem::directory_iterator(folder, failure)) {
    if (!entry.path().filename().string().starts_with("libnvrtc-builtins.so")) continue;
    if (::dlopen(entry.path().c_str(), RTLD_NOW | RTLD_LOCAL) != nullptr) return;
  }
}

Nvrtc load_nvrtc(const std::filesystem::path& path) {
  const char* given = std::getenv("STAR_NVRTC");
  std::string name = "libnvrtc.so." + std::to_string(CUDART_VERSION / 1000);
  if (given != nullptr && *given != '\0') name = given;
  if (!path.empty()) name = path.string();
  if (const auto folder = std::filesystem::path(name).parent_path(); !folder.empty()) load_builtins(folder);
  void* library = ::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw PlatformError(std::string("NVRTC does not load: ") + ::dlerror());
  Nvrtc nvrtc{};
  find(library, "nvrtcCreateProgram", nvrtc.nvrtcCreateProgram);
  find(library, "nvrtcCompileProgram", nvrtc.nvrtcCompileProgram);
  find(library, "nvrtcGetCUBINSize", nvrtc.nvrtcGetCUBINSize);
  find(library, "nvrtcGetCUBIN", nvrtc.nvrtcGetCUBIN);
  find(library, "nvrtcDestroyProgram", nvrtc.nvrtcDestroyProgram);
  find(library, "nvrtcGetErrorString", nvrtc.nvrtcGetErrorString);
  return nvrtc;
}

}  // namespace

std::vector<char> compile_argmax(const std::filesystem::path& path, std::pair<int, int> capability) {
  const Nvrtc nvrtc = load_nvrtc(path);
  std::string target = "sm_";
  target += std::to_string(capability.first) + std::to_string(capability.second);
  const auto check = [&](int error) {
    if (error != 0)
      throw PlatformError("NVRTC cannot compile for " + target + ": " + nvrtc.nvrtcGetErrorString(error));
  };
  Nvrtc::Program program = nullptr;
  check(nvrtc.nvrtcCreateProgram(&program, kArgmaxKernel, "argmax.cu", 0, nullptr, nullptr));
  const auto destroy = [&nvrtc](Nvrtc::Program* made) { nvrtc.nvrtcDestroyProgram(made); };
  const std::unique_ptr<Nvrtc::Program, decltype(destroy)> owner(&program, destroy);
  const std::string option = "--gpu-architecture=" + target;
  const char* const options[] = {option.c_str()};
  check(nvrtc.nvrtcCompileProgram(program, 1, options));
  std::size_t size = 0;
  check(nvrtc.nvrtcGetCUBINSize(program, &size));
  std::vector<char> code(size);
  check(nvrtc.nvrtcGetCUBIN(program, code.data()));
  return code;
}

Argmax::Argmax(const std::filesystem::path& nvrtc, std::pair<int, int> capability, std::int64_t max_rows)
    : tokens_(sizeof(std::int64_t) * static_cast<std::size_t>(max_rows), "token ids"),
      landing_(tokens_.size()) {
  const std::vector<char> code = compile_argmax(nvrtc, capability);
  cudaLibrary_t library = nullptr;
  check_cuda(cuda().cudaLibraryLoadData(&library, code.data(), nullptr, nullptr, 0, nullptr, nullptr, 0),
             "loading the argmax kernel");
  library_ = Owned<cudaLibrary_t, UnloadLibrary>(library);
  check_cuda(cuda().cudaLibraryGetKernel(&kernel_, library, kName), "loading the argmax kernel");
}

std::vector<std::int64_t> Argmax::find(const Stream& stream, const std::byte* logits, std::int64_t rows,
                                       std::int64_t vocab) const {
  std::byte* tokens = tokens_.data();
  int columns = static_cast<int>(vocab);
  std::array<void*, 3> arguments{&logits, &tokens, &columns};
  const dim3 grid(static_cast<unsigned>(rows), 1, 1), block(kThreads, 1, 1);
  check_cuda(cuda().cudaLaunchKernel(kernel_, grid, block, arguments.data(), 0, stream.get()),
             "launching the argmax kernel");
  std::vector<std::int64_t> found(static_cast<std::size_t>(rows));
  const std::size_t size = found.size() * sizeof(std::int64_t);
  stream.download(landing_.data(), tokens, size);
  stream.synchronize();
  std::memcpy(found.data(), landing_.data(), size);
  return found;
}

}  // namespace star
