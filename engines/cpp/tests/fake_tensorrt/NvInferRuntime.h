// A fake: as much of TensorRT's interface as the session calls. Written for the tests from the public API's
// names; nothing of NVIDIA's is in it. Its engines are ONNX graphs, see fake_engine.cpp. With
// STAR_TENSORRT_RTX it is a fake TensorRT-RTX.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#ifdef STAR_TENSORRT_RTX
#define NV_TENSORRT_MAJOR 1
#define NV_TENSORRT_VERSION 10701
#else
#define NV_TENSORRT_MAJOR 10
#define NV_TENSORRT_VERSION 101600
#endif

namespace nvinfer1 {

enum class DataType : std::int32_t {
  kFLOAT,
  kHALF,
  kINT8,
  kINT32,
  kBOOL,
  kUINT8,
  kFP8,
  kBF16,
  kINT64,
  kINT4
};
enum class TensorIOMode : std::int32_t { kNONE, kINPUT, kOUTPUT };
enum class TensorLocation : std::int32_t { kDEVICE, kHOST };
enum class ExecutionContextAllocationStrategy : std::int32_t { kSTATIC, kON_PROFILE_CHANGE, kUSER_MANAGED };
#ifdef STAR_TENSORRT_RTX
enum class CudaGraphStrategy : std::int32_t { kDISABLED, kWHOLE_GRAPH_CAPTURE };
enum class EngineValidity : std::int32_t { kVALID, kSUBOPTIMAL, kINVALID };
#endif

struct Dims {
  static constexpr std::int32_t MAX_DIMS = 8;
  std::int32_t nbDims;
  std::int64_t d[MAX_DIMS];
};

class ILogger {
 public:
  enum class Severity : std::int32_t { kINTERNAL_ERROR, kERROR, kWARNING, kINFO, kVERBOSE };
  virtual ~ILogger() = default;
  virtual void log(Severity severity, const char* text) noexcept = 0;
};

class IPluginRegistry {
 public:
  virtual ~IPluginRegistry() = default;
  virtual void* loadLibrary(const char* path) noexcept = 0;
};

class IExecutionContext {
 public:
  virtual ~IExecutionContext() = default;
  virtual void setDeviceMemoryV2(void* memory, std::int64_t size) noexcept = 0;
  virtual bool setTensorAddress(const char* name, void* address) noexcept = 0;
  virtual bool setInputShape(const char* name, const Dims& shape) noexcept = 0;
  virtual std::int32_t inferShapes(std::int32_t most, const char** names) noexcept = 0;
  virtual Dims getTensorShape(const char* name) const noexcept = 0;
  virtual bool enqueueV3(cudaStream_t stream) noexcept = 0;
};

class IRuntimeConfig {
 public:
  virtual ~IRuntimeConfig() = default;
  virtual void setExecutionContextAllocationStrategy(
      ExecutionContextAllocationStrategy strategy) noexcept = 0;
#ifdef STAR_TENSORRT_RTX
  virtual bool setCudaGraphStrategy(CudaGraphStrategy strategy) noexcept = 0;
#endif
};

class ICudaEngine {
 public:
  virtual ~ICudaEngine() = default;
  virtual std::int32_t getNbIOTensors() const noexcept = 0;
  virtual const char* getIOTensorName(std::int32_t index) const noexcept = 0;
  virtual TensorIOMode getTensorIOMode(const char* name) const noexcept = 0;
  virtual DataType getTensorDataType(const char* name) const noexcept = 0;
  virtual Dims getTensorShape(const char* name) const noexcept = 0;
  virtual const char* getAliasedInputTensor(const char* name) const noexcept = 0;
  virtual TensorLocation getTensorLocation(const char* name) const noexcept = 0;
  virtual std::int64_t getDeviceMemorySizeV2() const noexcept = 0;
  virtual std::int64_t getStreamableWeightsSize() const noexcept = 0;
  virtual bool setWeightStreamingBudgetV2(std::int64_t budget) noexcept = 0;
  virtual IRuntimeConfig* createRuntimeConfig() noexcept = 0;
  virtual IExecutionContext* createExecutionContext(IRuntimeConfig* config) noexcept = 0;
};

class IRuntime {
 public:
  virtual ~IRuntime() = default;
  virtual ICudaEngine* deserializeCudaEngine(const void* content, std::size_t size) noexcept = 0;
  virtual IRuntime* loadRuntime(const char* path) noexcept = 0;
#ifdef STAR_TENSORRT_RTX
  virtual EngineValidity getEngineValidity(const void* content, std::int64_t size,
                                           std::uint64_t* diagnostics) const noexcept = 0;
#endif
};

}  // namespace nvinfer1
