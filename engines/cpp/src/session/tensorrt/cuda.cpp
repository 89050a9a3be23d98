#include "session/tensorrt/cuda.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <vector>

#include "errors.hpp"

namespace star {
namespace {

CudaCalls calls;

std::string version_text(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

std::string gigabytes(std::size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f", static_cast<double>(bytes) / 1e9);
  return text;
}

void* open_library(const std::filesystem::path& path) {
  const char* given = std::getenv("STAR_CUDART");
  std::vector<std::string> names{"libcudart.so." + std::to_string(CUDART_VERSION / 1000), "libcudart.so"};
  if (given != nullptr && *given != '\0') names = {given};
  if (!path.empty()) names = {path.string()};
  std::string failure;
  for (const std::string& name : names) {
    if (void* handle = ::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) return handle;
    if (failure.empty()) failure = ::dlerror();
  }
  throw PlatformError("the CUDA runtime does not load: " + failure +
                      "; give the path of a libcudart, or set STAR_CUDART to it (the pip package "
                      "nvidia-cuda-runtime has one)");
}

template <typename Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  if (function == nullptr) {
    throw PlatformError(std::string("the CUDA runtime has no ") + name + "; give one of CUDA " +
                        std::to_string(CUDART_VERSION / 1000));
  }
}

CudaCalls load(const std::filesystem::path& path) {
  void* library = open_library(path);
  CudaCalls loaded;
#define STAR_CUDA_FIND(name) find(library, #name, loaded.name);
  STAR_CUDA_CALLS(STAR_CUDA_FIND)
#undef STAR_CUDA_FIND
  int version = 0;
  if (loaded.cudaRuntimeGetVersion(&version) != cudaSuccess || version / 1000 != CUDART_VERSION / 1000) {
    throw PlatformError("the CUDA runtime is of CUDA " + version_text(version) + ", this library needs " +
                        std::to_string(CUDART_VERSION / 1000) + "; give the path of such a libcudart");
  }
  return loaded;
}

// Errors after which every further call fails in this process, by CUDA's numbers: memory that cannot be
// corrected (214, 220, 226), a kernel's faults (700 to 721), the ends of MPS clients (810) and of external
// devices (911).
bool is_sticky(cudaError_t error) {
  constexpr int kSticky[] = {214, 220, 226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911};
  return std::find(std::begin(kSticky), std::end(kSticky), static_cast<int>(error)) != std::end(kSticky);
}

std::size_t aligned(std::size_t size) {
  return std::max<std::size_t>(1, (size + kAlignment - 1) / kAlignment) * kAlignment;
}

}  // namespace

const CudaCalls& load_cuda(const std::filesystem::path& path) {
  static std::once_flag once;
  std::call_once(once, [&] { calls = load(path); });
  return calls;
}

const CudaCalls& cuda() { return calls; }

void check_cuda(cudaError_t error, const std::string& doing) {
  if (error == cudaSuccess) return;
  calls.cudaGetLastError();  // else the next call that succeeds would seem to have failed
  const std::string text =
      std::string(calls.cudaGetErrorName(error)) + " (" + calls.cudaGetErrorString(error) + ")";
  if (is_sticky(error)) {
    throw PlatformError("the GPU is lost, " + doing + ": " + text + "; start the program again");
  }
  throw PlatformError(doing + ": " + text);
}

std::pair<int, int> require_device() {
  int version = 0, count = 0;
  check_cuda(calls.cudaDriverGetVersion(&version), "asking for the CUDA driver");
  if (version == 0) {
    throw PlatformError("this machine has no NVIDIA driver; install one, or use backend onnxruntime");
  }
  const cudaError_t error = calls.cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver) {
    throw PlatformError("the NVIDIA driver runs CUDA " + version_text(version) + ", this library needs " +
                        std::to_string(CUDART_VERSION / 1000) + "; update the driver");
  }
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) {
    throw PlatformError("the NVIDIA driver sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES");
  }
  check_cuda(error, "counting GPUs");
  std::pair<int, int> capability;
  check_cuda(calls.cudaDeviceGetAttribute(&capability.first, cudaDevAttrComputeCapabilityMajor, 0),
             "asking for the GPU");
  check_cuda(calls.cudaDeviceGetAttribute(&capability.second, cudaDevAttrComputeCapabilityMinor, 0),
             "asking for the GPU");
  return capability;
}

GpuMemory gpu_memory() {
  GpuMemory memory;
  check_cuda(calls.cudaMemGetInfo(&memory.free, &memory.total), "asking for free GPU memory");
  return memory;
}

DeviceBuffer::DeviceBuffer(std::size_t size, const std::string& what) : size_(std::max(size, kAlignment)) {
  void* memory = nullptr;
  const cudaError_t error = calls.cudaMalloc(&memory, size_);
  if (error == cudaErrorMemoryAllocation) {
    calls.cudaGetLastError();
    throw PlatformError(
        "the GPU has no room for " + what + ": " + gigabytes(size_) + " GB asked for, " +
        gigabytes(gpu_memory().free) + " GB free; close what else uses it, or build the bundle " +
        "again with a smaller max_text_tokens or max_new_tokens, or its engines with " + "weight_streaming");
  }
  check_cuda(error, "allocating " + what);
  memory_ = Owned<void*, FreeDevice>(memory);
}

DeviceTensors::DeviceTensors(const std::map<std::string, std::size_t, std::less<>>& sizes,
                             const std::string& what) {
  std::size_t total = 0;
  for (const auto& [name, size] : sizes) {
    offsets_.emplace(name, total);
    total += aligned(size);
  }
  buffer_.emplace(total, what);
}

PinnedBuffer::PinnedBuffer(std::size_t size) : size_(std::max(size, kAlignment)) {
  void* memory = nullptr;
  check_cuda(calls.cudaMallocHost(&memory, size_),
             "allocating " + std::to_string(size_) + " bytes of pinned memory");
  memory_ = Owned<void*, FreeHost>(memory);
}

Event::Event() {
  cudaEvent_t event = nullptr;
  check_cuda(calls.cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "creating a CUDA event");
  event_ = Owned<cudaEvent_t, FreeEvent>(event);
}

Stream::Stream() {
  cudaStream_t stream = nullptr;
  // Non-blocking: the default stream, and so anyone else's work, is not waited for.
  check_cuda(calls.cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a CUDA stream");
  stream_ = Owned<cudaStream_t, FreeStream>(stream);
}

void Stream::synchronize() const { check_cuda(calls.cudaStreamSynchronize(get()), "running on the GPU"); }

void Stream::upload(std::byte* to, const std::byte* source, std::size_t size) const {
  check_cuda(calls.cudaMemcpyAsync(to, source, size, cudaMemcpyHostToDevice, get()), "copying to the GPU");
}

void Stream::download(std::byte* to, const std::byte* source, std::size_t size) const {
  check_cuda(calls.cudaMemcpyAsync(to, source, size, cudaMemcpyDeviceToHost, get()), "copying from the GPU");
}

void Stream::zero(std::byte* to, std::size_t size) const {
  check_cuda(calls.cudaMemsetAsync(to, 0, size, get()), "clearing GPU memory");
}

void Stream::record(const Event& event) const {
  check_cuda(calls.cudaEventRecord(event.get(), get()), "recording a CUDA event");
}

void Stream::launch(const CudaGraph& graph) const {
  check_cuda(calls.cudaGraphLaunch(graph.get(), get()), "launching a CUDA graph");
}

void Stream::begin_capture() const {
  check_cuda(calls.cudaStreamBeginCapture(get(), cudaStreamCaptureModeThreadLocal), "beginning a CUDA graph");
}

void Stream::drop_capture() const {
  cudaGraph_t recorded = nullptr;  // what was recorded until then
  calls.cudaStreamEndCapture(get(), &recorded);
  calls.cudaGetLastError();
  const Owned<cudaGraph_t, FreeGraph> dropped(recorded);
}

CudaGraph Stream::end_capture() const {
  cudaGraph_t recorded = nullptr;
  const cudaError_t error = calls.cudaStreamEndCapture(get(), &recorded);
  const Owned<cudaGraph_t, FreeGraph> graph(recorded);
  check_cuda(error, "capturing a CUDA graph");
  cudaGraphExec_t executable = nullptr;
  check_cuda(calls.cudaGraphInstantiate(&executable, recorded, 0), "instantiating a CUDA graph");
  return CudaGraph(executable);
}

}  // namespace star
