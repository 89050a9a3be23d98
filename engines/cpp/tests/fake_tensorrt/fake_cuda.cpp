// A fake CUDA runtime on host memory; see fake_gpu.hpp.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <sstream>
#include <vector>

#include "fake_gpu.hpp"
#include "sampling/sampler.hpp"

using Work = std::function<bool()>;

struct CUstream_st {
  std::deque<Work> queue;
  bool capturing = false;
  std::vector<Work> captured;
};
struct CUevent_st {
  bool passed = true;
  CUstream_st* stream = nullptr;
};
struct CUgraph_st {
  std::vector<Work> work;
};
struct CUgraphExec_st {
  std::vector<Work> work;
};

namespace {

constexpr std::uintptr_t kFirstAddress = std::uintptr_t{1} << 52;
constexpr std::size_t kAlignment = 256;
constexpr std::byte kPoison{0xFF};  // NaN in every float, -1 in every integer

// On the TensorRT that STAR_FAKE_VERSION names, for programs that have no other way to set it.
FakeGpu machine() {
  FakeGpu found;
  if (const char* version = std::getenv("STAR_FAKE_VERSION")) {
    std::istringstream numbers(version);
    char dot = '.';
    for (int& number : found.tensorrt) numbers >> number >> dot;
  }
  return found;
}

FakeGpu gpu = machine();
std::recursive_mutex mutex;
std::map<std::uintptr_t, std::vector<std::byte>> blocks;
std::uintptr_t next = kFirstAddress;
std::vector<std::unique_ptr<CUstream_st>> streams;
cudaError_t lost = cudaSuccess;

void work_off(CUstream_st& stream) {
  while (!stream.queue.empty()) {
    const Work work = std::move(stream.queue.front());
    stream.queue.pop_front();
    if (lost == cudaSuccess && !work()) lost = cudaErrorIllegalAddress;
  }
}

void work_off_all() {
  for (const auto& stream : streams) work_off(*stream);
}

}  // namespace

extern "C" FakeGpu* fake_gpu() { return &gpu; }

std::byte* fake_view(const void* address, std::size_t size) {
  const std::scoped_lock lock(mutex);
  const auto wanted = reinterpret_cast<std::uintptr_t>(address);
  auto block = blocks.upper_bound(wanted);
  if (block == blocks.begin()) return nullptr;
  --block;
  const std::uintptr_t start = wanted - block->first;
  if (start > block->second.size() || size > block->second.size() - start) return nullptr;
  return block->second.data() + start;
}

cudaError_t fake_enqueue(cudaStream_t stream, Work work) {
  const std::scoped_lock lock(mutex);
  if (stream->capturing) {
    stream->captured.push_back(std::move(work));
  } else {
    stream->queue.push_back(std::move(work));
  }
  return lost;
}

extern "C" {

cudaError_t cudaDriverGetVersion(int* version) {
  *version = gpu.driver;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = gpu.devices;
  if (gpu.driver < CUDART_VERSION) return cudaErrorInsufficientDriver;
  return gpu.devices == 0 ? cudaErrorNoDevice : cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? gpu.major : gpu.minor;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *free = gpu.memory - gpu.in_use;
  *total = gpu.memory;
  return cudaSuccess;
}

const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorIllegalAddress ? "cudaErrorIllegalAddress" : "cudaErrorOfTheFake";
}

const char* cudaGetErrorString(cudaError_t) { return "the fake GPU says so"; }

cudaError_t cudaGetLastError() { return lost; }

cudaError_t cudaMalloc(void** pointer, std::size_t size) {
  const std::scoped_lock lock(mutex);
  if (size > gpu.memory - gpu.in_use) return cudaErrorMemoryAllocation;
  *pointer = reinterpret_cast<void*>(next);  // NOLINT(performance-no-int-to-ptr): nobody follows it
  blocks.emplace(next, std::vector<std::byte>(size, kPoison));
  next += (size / kAlignment + 2) * kAlignment;  // never used again; what lies between is nobody's
  gpu.in_use += size;
  ++gpu.allocated;
  return cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
  const std::scoped_lock lock(mutex);
  work_off_all();
  const auto block = blocks.find(reinterpret_cast<std::uintptr_t>(pointer));
  if (block == blocks.end()) return cudaErrorInvalidValue;
  gpu.in_use -= block->second.size();
  blocks.erase(block);
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** pointer, std::size_t size) {
  *pointer = std::make_unique<std::byte[]>(size).release();
  std::memset(*pointer, static_cast<int>(kPoison), size);
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* pointer) {
  const std::unique_ptr<std::byte[]> freed(static_cast<std::byte*>(pointer));
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t size, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  const std::scoped_lock lock(mutex);
  (kind == cudaMemcpyHostToDevice ? gpu.uploaded : gpu.downloaded) += size;
  return fake_enqueue(stream, [=] {
    void* target = kind == cudaMemcpyHostToDevice ? fake_view(to, size) : to;
    const void* source = kind == cudaMemcpyDeviceToHost ? fake_view(from, size) : from;
    if (target == nullptr || source == nullptr) return false;
    std::memcpy(target, source, size);
    return true;
  });
}

cudaError_t cudaMemsetAsync(void* to, int value, std::size_t size, cudaStream_t stream) {
  return fake_enqueue(stream, [=] {
    std::byte* target = fake_view(to, size);
    if (target != nullptr) std::memset(target, value, size);
    return target != nullptr;
  });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const std::scoped_lock lock(mutex);
  *stream = streams.emplace_back(std::make_unique<CUstream_st>()).get();
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const std::scoped_lock lock(mutex);
  work_off(*stream);
  std::erase_if(streams, [&](const auto& one) { return one.get() == stream; });
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const std::scoped_lock lock(mutex);
  ++gpu.waited;
  work_off(*stream);
  return lost;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  stream->capturing = true;
  stream->captured.clear();
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  stream->capturing = false;
  *graph = nullptr;
  if (!gpu.captures) return cudaErrorStreamCaptureUnsupported;
  ++gpu.captured;
  auto made = std::make_unique<CUgraph_st>();
  made->work = std::move(stream->captured);
  *graph = made.release();
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  auto made = std::make_unique<CUgraphExec_st>();
  made->work = graph->work;
  *executable = made.release();
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const std::unique_ptr<CUgraph_st> freed(graph);
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  ++gpu.launched;
  for (const Work& work : executable->work) fake_enqueue(stream, work);
  return lost;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  const std::unique_ptr<CUgraphExec_st> freed(executable);
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = std::make_unique<CUevent_st>().release();
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const std::scoped_lock lock(mutex);
  if (event->stream != nullptr) work_off(*event->stream);  // its marker points here
  const std::unique_ptr<CUevent_st> freed(event);
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const std::scoped_lock lock(mutex);
  event->passed = false;
  event->stream = stream;
  return fake_enqueue(stream, [event] {
    event->passed = true;
    event->stream = nullptr;
    return true;
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const std::scoped_lock lock(mutex);
  while (!event->passed && event->stream != nullptr && !event->stream->queue.empty()) {
    const Work work = std::move(event->stream->queue.front());
    event->stream->queue.pop_front();
    if (!work()) lost = cudaErrorIllegalAddress;
  }
  return lost;
}

cudaError_t cudaLibraryLoadData(cudaLibrary_t* library, const void*, cudaJitOption*, void**, unsigned,
                                cudaLibraryOption*, void**, unsigned) {
  *library = reinterpret_cast<cudaLibrary_t>(&gpu);
  return cudaSuccess;
}

cudaError_t cudaLibraryGetKernel(cudaKernel_t* kernel, cudaLibrary_t library, const char* name) {
  *kernel = reinterpret_cast<cudaKernel_t>(library);
  return std::strcmp(name, "star_argmax") == 0 ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaLibraryUnload(cudaLibrary_t) { return cudaSuccess; }

// The one kernel: the index of the largest logit of each row.
cudaError_t cudaLaunchKernel(const void*, dim3 grid, dim3, void** arguments, std::size_t,
                             cudaStream_t stream) {
  const void* logits = *static_cast<const void**>(arguments[0]);
  const void* tokens = *static_cast<void**>(arguments[1]);
  const auto vocab = static_cast<std::size_t>(*static_cast<int*>(arguments[2]));
  ++gpu.kernels;
  return fake_enqueue(stream, [=] {
    const std::byte* source = fake_view(logits, grid.x * vocab * sizeof(float));
    std::byte* target = fake_view(tokens, grid.x * sizeof(std::int64_t));
    if (source == nullptr || target == nullptr) return false;
    for (unsigned row = 0; row < grid.x; ++row) {
      const auto* first = reinterpret_cast<const float*>(source) + row * vocab;
      const std::int64_t token = star::argmax(std::span(first, vocab));
      std::memcpy(target + row * sizeof token, &token, sizeof token);
    }
    return true;
  });
}

// A fake NVRTC, whose machine code nobody reads.
int nvrtcCreateProgram(void** program, const char*, const char*, int, const char* const*,
                       const char* const*) {
  *program = &gpu;
  return 0;
}
int nvrtcCompileProgram(void*, int, const char* const*) { return gpu.compiles ? 0 : 5; }
int nvrtcGetCUBINSize(void*, std::size_t* size) {
  *size = 1;
  return 0;
}
int nvrtcGetCUBIN(void*, char* code) {
  *code = 0;
  return 0;
}
int nvrtcDestroyProgram(void**) { return 0; }
const char* nvrtcGetErrorString(int) { return "NVRTC_ERROR_INVALID_OPTION"; }

}  // extern "C"
