// CUDA in the few pieces a session needs: its runtime library, loaded while the program runs, and an owner
// for every handle. Which GPU: the first visible one, so CUDA_VISIBLE_DEVICES chooses.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>

namespace star {

// Tensors that share an allocation start at multiples of this, as separate ones would.
inline constexpr std::size_t kAlignment = 256;

#define STAR_CUDA_CALLS(CALL)                                                                                \
  CALL(cudaDriverGetVersion)                                                                                 \
  CALL(cudaRuntimeGetVersion) CALL(cudaGetDeviceCount) CALL(cudaDeviceGetAttribute) CALL(cudaMemGetInfo)     \
      CALL(cudaGetErrorName) CALL(cudaGetErrorString) CALL(cudaGetLastError) CALL(cudaMalloc) CALL(cudaFree) \
          CALL(cudaMallocHost) CALL(cudaFreeHost) CALL(cudaMemcpyAsync) CALL(cudaMemsetAsync)                \
              CALL(cudaStreamCreateWithFlags) CALL(cudaStreamDestroy) CALL(cudaStreamSynchronize)            \
                  CALL(cudaStreamBeginCapture) CALL(cudaStreamEndCapture) CALL(cudaGraphInstantiate)         \
                      CALL(cudaGraphDestroy) CALL(cudaGraphLaunch) CALL(cudaGraphExecDestroy)                \
                          CALL(cudaEventCreateWithFlags) CALL(cudaEventDestroy) CALL(cudaEventRecord)        \
                              CALL(cudaEventSynchronize) CALL(cudaLibraryLoadData)                           \
                                  CALL(cudaLibraryGetKernel) CALL(cudaLibraryUnload) CALL(cudaLaunchKernel)

// The functions of the CUDA runtime, under their names.
struct CudaCalls {
// NOLINTNEXTLINE(bugprone-macro-parentheses): it is a name
#define STAR_CUDA_MEMBER(name) decltype(&::name) name = nullptr;
  STAR_CUDA_CALLS(STAR_CUDA_MEMBER)
#undef STAR_CUDA_MEMBER
};

// Loads the CUDA runtime, once for the process. Throws PlatformError if there is none, or it is another than
// the headers are of.
const CudaCalls& load_cuda(const std::filesystem::path& path);
// The one that was loaded.
const CudaCalls& cuda();

// Throws PlatformError with what the call was for and CUDA's name and text of the error.
void check_cuda(cudaError_t error, const std::string& doing);

// Compute capability of the GPU. Throws PlatformError if driver or device is missing, naming which.
std::pair<int, int> require_device();

struct GpuMemory {
  std::size_t free = 0, total = 0;
};
GpuMemory gpu_memory();

// A handle and what lets go of it.
template <typename Handle, typename Free>
class Owned {
 public:
  Owned() = default;
  explicit Owned(Handle handle) : handle_(handle) {}
  ~Owned() {
    if (handle_) Free()(handle_);
  }
  Owned(Owned&& other) noexcept : handle_(std::exchange(other.handle_, Handle{})) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  Handle get() const { return handle_; }

 private:
  Handle handle_{};
};

struct FreeDevice {
  void operator()(void* pointer) const { cuda().cudaFree(pointer); }
};
struct FreeHost {
  void operator()(void* pointer) const { cuda().cudaFreeHost(pointer); }
};
struct FreeStream {
  void operator()(cudaStream_t stream) const { cuda().cudaStreamDestroy(stream); }
};
struct FreeEvent {
  void operator()(cudaEvent_t event) const { cuda().cudaEventDestroy(event); }
};
struct FreeGraph {
  void operator()(cudaGraph_t graph) const { cuda().cudaGraphDestroy(graph); }
};
struct FreeExecutable {
  void operator()(cudaGraphExec_t graph) const { cuda().cudaGraphExecDestroy(graph); }
};
using CudaGraph = Owned<cudaGraphExec_t, FreeExecutable>;

// Device memory. An empty buffer has an address too, since TensorRT refuses null.
class DeviceBuffer {
 public:
  // `what` it holds is for the message when there is no room. Throws PlatformError.
  DeviceBuffer(std::size_t size, const std::string& what);
  std::byte* data() const { return static_cast<std::byte*>(memory_.get()); }
  std::size_t size() const { return size_; }

 private:
  std::size_t size_;
  Owned<void*, FreeDevice> memory_;
};

// Named tensors in one allocation of device memory, each where TensorRT takes it.
class DeviceTensors {
 public:
  DeviceTensors(const std::map<std::string, std::size_t, std::less<>>& sizes, const std::string& what);
  std::byte* address(std::string_view name) const { return buffer_->data() + offset(name); }
  std::size_t offset(std::string_view name) const { return offsets_.find(name)->second; }
  std::byte* data() const { return buffer_->data(); }
  std::size_t size() const { return buffer_->size(); }

 private:
  std::map<std::string, std::size_t, std::less<>> offsets_;
  std::optional<DeviceBuffer> buffer_;
};

// Host memory that the GPU copies from and to without a detour.
class PinnedBuffer {
 public:
  explicit PinnedBuffer(std::size_t size);
  std::byte* data() const { return static_cast<std::byte*>(memory_.get()); }
  std::size_t size() const { return size_; }

 private:
  std::size_t size_;
  Owned<void*, FreeHost> memory_;
};

// A moment in a stream; one that was never recorded has passed.
class Event {
 public:
  Event();
  void synchronize() const { check_cuda(cuda().cudaEventSynchronize(event_.get()), "running on the GPU"); }
  cudaEvent_t get() const { return event_.get(); }

 private:
  Owned<cudaEvent_t, FreeEvent> event_;
};

// A queue of work for the GPU. Nothing here waits but `synchronize`.
class Stream {
 public:
  Stream();
  cudaStream_t get() const { return stream_.get(); }
  // An error of earlier work comes out here.
  void synchronize() const;
  // From pinned to device memory, and back.
  void upload(std::byte* to, const std::byte* source, std::size_t size) const;
  void download(std::byte* to, const std::byte* source, std::size_t size) const;
  void zero(std::byte* to, std::size_t size) const;
  void record(const Event& event) const;
  void launch(const CudaGraph& graph) const;

  // Records what `enqueue` puts on this stream instead of running it. Where something in it cannot be
  // captured, its exception comes out and the stream is usable again.
  template <typename Enqueue>
  CudaGraph capture(Enqueue enqueue) const {
    begin_capture();
    try {
      enqueue();
    } catch (...) {
      drop_capture();
      throw;
    }
    return end_capture();
  }

 private:
  void begin_capture() const;
  void drop_capture() const;
  CudaGraph end_capture() const;

  Owned<cudaStream_t, FreeStream> stream_;
};

}  // namespace star
