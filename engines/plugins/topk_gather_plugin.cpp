// star::TopKGather as a TensorRT plugin library: IPluginV3 around the kernel of topk_gather.cu.
//
// The kernel is PTX text in this library, loaded through the CUDA driver at the first launch, so the
// library builds with a C++ compiler and headers alone, links to nothing, and loads without a driver.
// TensorRT loads it with IPluginRegistry::loadLibrary, which calls getCreators.
#include <NvInfer.h>
#include <cuda.h>
#include <dlfcn.h>

#include <atomic>
#include <string>

#include "topk_gather.h"

#define STAR_EXPORTED __attribute__((visibility("default")))

extern char const star_topk_gather_ptx[];  // written by CMake

namespace star {
namespace {

using namespace nvinfer1;

constexpr char const* kName = "TopKGather";
constexpr char const* kNamespace = "star";
constexpr char const* kVersion = "1";

enum Tensor : int32_t { kX, kScores, kSlots, kNumInputs, kKept = kNumInputs, kIndices, kNumTensors };

std::atomic<ILoggerFinder*> logger_finder{nullptr};

void log_error(std::string const& message) noexcept {
  ILoggerFinder* finder = logger_finder.load();
  ILogger* logger = finder == nullptr ? nullptr : finder->findLogger();
  if (logger != nullptr) logger->log(ILogger::Severity::kERROR, ("star::TopKGather: " + message).c_str());
}

// The kernel and the one driver function a launch needs. A cuLibrary serves every context of the process.
struct Kernel {
  decltype(&cuLaunchKernel) launch = nullptr;
  CUkernel kernel = nullptr;
  std::string error;
};

Kernel load_kernel() {
  void* driver = dlopen("libcuda.so.1", RTLD_NOW);
  if (driver == nullptr) return {nullptr, nullptr, "no NVIDIA driver: libcuda.so.1 does not load"};
  auto const load = reinterpret_cast<decltype(&cuLibraryLoadData)>(dlsym(driver, "cuLibraryLoadData"));
  auto const get = reinterpret_cast<decltype(&cuLibraryGetKernel)>(dlsym(driver, "cuLibraryGetKernel"));
  auto const launch = reinterpret_cast<decltype(&cuLaunchKernel)>(dlsym(driver, "cuLaunchKernel"));
  if (load == nullptr || get == nullptr || launch == nullptr) {
    return {nullptr, nullptr, "the NVIDIA driver is older than CUDA 12"};
  }
  CUlibrary library;
  CUresult status = load(&library, star_topk_gather_ptx, nullptr, nullptr, 0, nullptr, nullptr, 0);
  if (status != CUDA_SUCCESS) {
    return {nullptr, nullptr, "the driver refuses the kernel, CUresult " + std::to_string(status)};
  }
  CUkernel kernel;
  status = get(&kernel, library, "star_topk_gather");
  if (status != CUDA_SUCCESS) {
    return {nullptr, nullptr, "the PTX has no star_topk_gather, CUresult " + std::to_string(status)};
  }
  return {launch, kernel, ""};
}

Kernel const& kernel() {
  static Kernel const loaded = load_kernel();
  return loaded;
}

bool is_row_type(DataType type) {
  return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

int32_t element_bytes(DataType type) { return type == DataType::kFLOAT ? 4 : 2; }

class TopKGather final : public IPluginV3,
                         public IPluginV3OneCore,
                         public IPluginV3OneBuild,
                         public IPluginV3OneRuntime {
 public:
  IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
    switch (type) {
      case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
      case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
      case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }

  IPluginV3* clone() noexcept override { return new (std::nothrow) TopKGather(*this); }

  char const* getPluginName() const noexcept override { return kName; }
  char const* getPluginVersion() const noexcept override { return kVersion; }
  char const* getPluginNamespace() const noexcept override { return kNamespace; }

  int32_t getNbOutputs() const noexcept override { return kNumTensors - kNumInputs; }

  int32_t getOutputDataTypes(DataType* outputs, int32_t num_outputs, DataType const* inputs,
                             int32_t num_inputs) const noexcept override {
    if (num_inputs != kNumInputs || num_outputs != getNbOutputs()) return -1;
    outputs[0] = inputs[kX];
    outputs[1] = DataType::kINT64;
    return 0;
  }

  // kept [B, k, C], indices [B, k], where k is the length of slots.
  int32_t getOutputShapes(DimsExprs const* inputs, int32_t num_inputs, DimsExprs const*, int32_t,
                          DimsExprs* outputs, int32_t num_outputs, IExprBuilder&) noexcept override {
    if (num_inputs != kNumInputs || num_outputs != getNbOutputs()) return -1;
    DimsExprs const& x = inputs[kX];
    if (x.nbDims != 3 || inputs[kScores].nbDims != 2 || inputs[kSlots].nbDims != 1) {
      log_error("expected x [B, N, C], scores [B, N] and slots [k]");
      return -1;
    }
    IDimensionExpr const* k = inputs[kSlots].d[0];
    outputs[0].nbDims = 3;
    outputs[0].d[0] = x.d[0];
    outputs[0].d[1] = k;
    outputs[0].d[2] = x.d[2];
    outputs[1].nbDims = 2;
    outputs[1].d[0] = x.d[0];
    outputs[1].d[1] = k;
    return 0;
  }

  bool supportsFormatCombination(int32_t position, DynamicPluginTensorDesc const* tensors, int32_t num_inputs,
                                 int32_t num_outputs) noexcept override {
    if (num_inputs != kNumInputs || num_outputs != getNbOutputs()) return false;
    PluginTensorDesc const& tensor = tensors[position].desc;
    if (tensor.format != TensorFormat::kLINEAR) return false;
    switch (position) {
      case kX: return is_row_type(tensor.type);
      case kScores: return tensor.type == DataType::kFLOAT;
      case kKept: return tensor.type == tensors[kX].desc.type;
      default: return tensor.type == DataType::kINT64;
    }
  }

  int32_t configurePlugin(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*,
                          int32_t) noexcept override {
    return 0;
  }

  int32_t onShapeChange(PluginTensorDesc const* inputs, int32_t, PluginTensorDesc const*,
                        int32_t) noexcept override {
    int64_t const rows = inputs[kX].dims.d[1], k = inputs[kSlots].dims.d[0];
    if (k <= rows) return 0;
    log_error("cannot keep " + std::to_string(k) + " of " + std::to_string(rows) + " rows");
    return -1;
  }

  int32_t enqueue(PluginTensorDesc const* input_descs, PluginTensorDesc const*, void const* const* inputs,
                  void* const* outputs, void*, cudaStream_t stream) noexcept override {
    Kernel const& loaded = kernel();
    if (loaded.launch == nullptr) {
      log_error(loaded.error);
      return -1;
    }
    Dims const& shape = input_descs[kX].dims;
    int32_t rows = static_cast<int32_t>(shape.d[1]);
    int32_t k = static_cast<int32_t>(input_descs[kSlots].dims.d[0]);
    int32_t row_bytes = static_cast<int32_t>(shape.d[2]) * element_bytes(input_descs[kX].type);
    if (shape.d[0] == 0 || k == 0) return 0;
    int64_t const shares = (k - 1) / STAR_ROWS_PER_BLOCK + 1;
    void const *x = inputs[kX], *scores = inputs[kScores], *slots = inputs[kSlots];
    void *kept = outputs[0], *indices = outputs[1];
    void* arguments[] = {&x, &scores, &slots, &rows, &k, &row_bytes, &kept, &indices};
    CUresult const status
        = loaded.launch(reinterpret_cast<CUfunction>(loaded.kernel), static_cast<unsigned int>(shape.d[0] * shares),
                        1, 1, STAR_BLOCK_THREADS, 1, 1, 0, stream, arguments, nullptr);
    if (status == CUDA_SUCCESS) return 0;
    log_error("launch failed, CUresult " + std::to_string(status));
    return -1;
  }

  IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }

  PluginFieldCollection const* getFieldsToSerialize() noexcept override { return &no_fields_; }

 private:
  PluginFieldCollection no_fields_{0, nullptr};
};

class TopKGatherCreator final : public IPluginCreatorV3One {
 public:
  IPluginV3* createPlugin(AsciiChar const*, PluginFieldCollection const*, TensorRTPhase) noexcept override {
    return new (std::nothrow) TopKGather;
  }

  PluginFieldCollection const* getFieldNames() noexcept override { return &no_fields_; }
  AsciiChar const* getPluginName() const noexcept override { return kName; }
  AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
  AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

 private:
  PluginFieldCollection no_fields_{0, nullptr};
};

}  // namespace
}  // namespace star

extern "C" STAR_EXPORTED void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { star::logger_finder = finder; }

extern "C" STAR_EXPORTED nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static star::TopKGatherCreator creator;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
  count = 1;
  return creators;
}
