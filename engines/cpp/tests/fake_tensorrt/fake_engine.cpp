// A fake TensorRT: its engine files name a bundle and the graph that they stand for, and ONNX Runtime
// computes it. A context remembers what it was told; a run reads and writes the memory that is bound, as it
// is by then.
#include <NvInferRuntime.h>
#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bundle/bundle.hpp"
#include "bundle/json.hpp"
#include "fake_gpu.hpp"
#include "session/engine_shapes.hpp"
#include "session/library.hpp"
#include "session/mapped.hpp"

namespace {

using namespace nvinfer1;

constexpr std::int64_t kScratch = 1 << 16;
constexpr std::size_t kAlignment = 256;
constexpr int kPoison = 0xFF;

Ort::Env& environment() {
  static Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "fake");
  return env;
}

DataType type_named(std::string_view name) {
  const std::map<std::string_view, DataType> types{
      {"FLOAT", DataType::kFLOAT}, {"HALF", DataType::kHALF}, {"BF16", DataType::kBF16},
      {"INT64", DataType::kINT64}, {"INT8", DataType::kINT8}, {"UINT8", DataType::kUINT8},
      {"F32", DataType::kFLOAT},   {"F16", DataType::kHALF},  {"BF16", DataType::kBF16},
      {"I64", DataType::kINT64},   {"I8", DataType::kINT8},   {"U8", DataType::kUINT8}};
  return types.at(name);
}

ONNXTensorElementDataType element_type(DataType type) {
  const std::map<DataType, ONNXTensorElementDataType> types{
      {DataType::kFLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT},
      {DataType::kHALF, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16},
      {DataType::kINT64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64}};
  return types.at(type);
}

Dims dims_of(const star::Shape& shape) {
  Dims dims{};
  dims.nbDims = static_cast<std::int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), dims.d);
  return dims;
}

struct Tensor {
  bool is_input;
  DataType type;
  star::TensorSpec spec;
  std::string alias;
  const star::MappedTensor* weight = nullptr;

  std::size_t bytes(const star::Shape& shape) const { return star::bytes_of(spec.dtype, shape); }
};

class FakeConfig : public IRuntimeConfig {
 public:
  void setExecutionContextAllocationStrategy(ExecutionContextAllocationStrategy given) noexcept override {
    strategy = given;
  }
#ifdef STAR_TENSORRT_RTX
  bool setCudaGraphStrategy(CudaGraphStrategy) noexcept override {
    ++fake_gpu()->strategies;
    return true;
  }
#endif
  ExecutionContextAllocationStrategy strategy = ExecutionContextAllocationStrategy::kSTATIC;
};

// What the contexts of an engine share.
struct Graph {
  ILogger* logger;
  star::Bundle bundle;
  std::vector<star::MappedFile> files;
  std::vector<star::MappedTensor> weights;
  std::map<std::string, Tensor, std::less<>> tensors;
  Ort::Session session{nullptr};

  bool refuse(const std::string& reason) const {
    logger->log(ILogger::Severity::kERROR, reason.c_str());
    return false;
  }
};

class FakeContext : public IExecutionContext {
 public:
  explicit FakeContext(std::shared_ptr<Graph> graph) : graph_(std::move(graph)) {
    for (const auto& [name, tensor] : graph_->tensors) {
      star::Shape shape;
      bool is_fixed = tensor.is_input;
      for (const star::Dim& dim : tensor.spec.shape) {
        is_fixed = is_fixed && dim.symbol.empty();
        shape.push_back(dim.size);
      }
      if (is_fixed) shapes_[name] = shape;
    }
  }

  void setDeviceMemoryV2(void* memory, std::int64_t size) noexcept override {
    scratch_ = memory;
    scratch_size_ = size;
  }

  bool setTensorAddress(const char* name, void* address) noexcept override {
    const bool is_right = address != nullptr && reinterpret_cast<std::uintptr_t>(address) % kAlignment == 0;
    if (!is_right || !graph_->tensors.contains(name))
      return graph_->refuse(std::string(name) + " cannot be there");
    addresses_[name] = address;
    return true;
  }

  bool setInputShape(const char* name, const Dims& dims) noexcept override {
    const star::TensorSpec& spec = graph_->tensors.at(name).spec;
    if (static_cast<std::size_t>(dims.nbDims) != spec.shape.size()) return graph_->refuse("another rank");
    for (std::size_t i = 0; i < spec.shape.size(); ++i) {
      const star::Dim& dim = spec.shape[i];
      if (dim.symbol.empty() && dim.size != dims.d[i])
        return graph_->refuse(std::string(name) + " cannot be so");
      if (!dim.symbol.empty()) sizes_.insert_or_assign(dim.symbol, dims.d[i]);
    }
    shapes_[name] = star::Shape(dims.d, dims.d + dims.nbDims);
    return true;
  }

  std::int32_t inferShapes(std::int32_t, const char** names) noexcept override {
    std::int32_t missing = 0;
    for (const auto& [name, tensor] : graph_->tensors) {
      if (!tensor.is_input || shapes_.contains(name)) continue;
      ++missing;
      *names = name.c_str();
    }
    return missing;
  }

  Dims getTensorShape(const char* name) const noexcept override { return dims_of(shape_of(name)); }

  bool enqueueV3(cudaStream_t stream) noexcept override {
    ++fake_gpu()->enqueued;
    for (const auto& [name, tensor] : graph_->tensors) {
      const auto address = addresses_.find(name);
      if (address == addresses_.end()) return graph_->refuse("no address for " + name);
      if (!tensor.alias.empty() && address->second != addresses_.at(tensor.alias)) {
        return graph_->refuse(name + " must share the address of " + tensor.alias);
      }
    }
    if (scratch_size_ < kScratch) return graph_->refuse("too little device memory");
    std::map<std::string, star::Shape> shapes;
    for (const auto& [name, tensor] : graph_->tensors) shapes[name] = shape_of(name);
    const auto work = [graph = graph_, shapes, addresses = addresses_, scratch = scratch_] {
      return run(*graph, shapes, addresses, scratch);
    };
    return fake_enqueue(stream, work) == cudaSuccess;
  }

 private:
  using Places = std::map<std::string, void*, std::less<>>;

  star::Shape shape_of(std::string_view name) const {
    star::Shape shape;
    for (const star::Dim& dim : graph_->tensors.find(name)->second.spec.shape) {
      shape.push_back(star::value_of(dim, sizes_, sizes_));
    }
    return shape;
  }

  // ONNX Runtime computes with constants, whose products round otherwise than those of inputs; where anything
  // else is bound than the weights, the results are poison.
  static bool run(Graph& graph, const std::map<std::string, star::Shape>& shapes, const Places& addresses,
                  void* scratch) {
    std::byte* activations = fake_view(scratch, kScratch);
    if (activations == nullptr) return false;
    std::memset(activations, kPoison, kScratch);
    bool is_right = true;
    Ort::IoBinding binding(graph.session);
    std::vector<std::pair<std::byte*, std::size_t>> outputs;
    const Ort::MemoryInfo host = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
    for (const auto& [name, tensor] : graph.tensors) {
      const star::Shape& shape = shapes.at(name);
      const std::size_t size = tensor.weight ? tensor.weight->data.size() : tensor.bytes(shape);
      std::byte* data = fake_view(addresses.find(name)->second, size);
      if (data == nullptr) return false;
      if (tensor.weight != nullptr) {
        is_right = is_right && std::memcmp(data, tensor.weight->data.data(), size) == 0;
        continue;
      }
      const Ort::Value value =
          Ort::Value::CreateTensor(host, data, size, shape.data(), shape.size(), element_type(tensor.type));
      if (tensor.is_input) binding.BindInput(name.c_str(), value);
      if (!tensor.is_input) binding.BindOutput(name.c_str(), value);
      if (!tensor.is_input) outputs.emplace_back(data, size);
    }
    if (is_right) graph.session.Run(Ort::RunOptions(), binding);
    for (const auto& [data, size] : outputs) {
      if (!is_right) std::memset(data, kPoison, size);
    }
    return true;
  }

  std::shared_ptr<Graph> graph_;
  std::map<std::string, star::Shape, std::less<>> shapes_;
  star::SymbolSizes sizes_;
  Places addresses_;
  void* scratch_ = nullptr;
  std::int64_t scratch_size_ = 0;
};

class FakeEngine : public ICudaEngine {
 public:
  explicit FakeEngine(std::shared_ptr<Graph> graph) : graph_(std::move(graph)) {
    for (const auto& [name, tensor] : graph_->tensors) names_.push_back(name);
  }

  std::int32_t getNbIOTensors() const noexcept override { return static_cast<std::int32_t>(names_.size()); }
  const char* getIOTensorName(std::int32_t i) const noexcept override {
    return names_[static_cast<std::size_t>(i)].c_str();
  }
  TensorIOMode getTensorIOMode(const char* name) const noexcept override {
    return graph_->tensors.at(name).is_input ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
  }
  DataType getTensorDataType(const char* name) const noexcept override {
    return graph_->tensors.at(name).type;
  }
  Dims getTensorShape(const char* name) const noexcept override {
    star::Shape shape;
    for (const star::Dim& dim : graph_->tensors.at(name).spec.shape) {
      shape.push_back(dim.symbol.empty() ? dim.size : -1);
    }
    return dims_of(shape);
  }
  const char* getAliasedInputTensor(const char* name) const noexcept override {
    const std::string& alias = graph_->tensors.at(name).alias;
    return alias.empty() ? nullptr : alias.c_str();
  }
  TensorLocation getTensorLocation(const char*) const noexcept override { return TensorLocation::kDEVICE; }
  std::int64_t getDeviceMemorySizeV2() const noexcept override { return kScratch; }
  std::int64_t getStreamableWeightsSize() const noexcept override { return 0; }
  bool setWeightStreamingBudgetV2(std::int64_t) noexcept override { return true; }
  IRuntimeConfig* createRuntimeConfig() noexcept override { return std::make_unique<FakeConfig>().release(); }
  IExecutionContext* createExecutionContext(IRuntimeConfig* config) noexcept override {
    const auto strategy = static_cast<FakeConfig*>(config)->strategy;
    if (strategy != ExecutionContextAllocationStrategy::kUSER_MANAGED) return nullptr;
    ++fake_gpu()->contexts;
    return std::make_unique<FakeContext>(graph_).release();
  }

 private:
  std::shared_ptr<Graph> graph_;
  std::vector<std::string> names_;
};

Ort::Session open_graph(const star::Bundle& bundle, std::string_view name) {
  Ort::InitApi(star::onnxruntime_library().api);
  Ort::SessionOptions options;
  options.AddConfigEntry("session.qdq_matmulnbits_accuracy_level", "4");
  if (!bundle.spec().quantization) options.AddConfigEntry("session.disable_prepacking", "1");
  if (bundle.spec().dtype == star::DType::kFloat32) {
    options.AddConfigEntry("optimization.disable_specified_optimizers", "ConstantFolding");
  }
  return Ort::Session(environment(), bundle.graph_path(name).c_str(), options);
}

// A tensor with the sizes of the caches as numbers.
star::TensorSpec pinned(star::TensorSpec spec, const star::SymbolSizes& sizes) {
  for (star::Dim& dim : spec.shape) {
    const auto size = sizes.find(dim.symbol);
    if (size != sizes.end()) dim = star::Dim(size->second);
  }
  return spec;
}

std::shared_ptr<Graph> read_graph(std::string_view content, ILogger* logger) {
  const star::Json entry = star::parse_json(content);
  const std::string name = entry.at("fake engine");
  auto graph = std::make_shared<Graph>();
  graph->logger = logger;
  graph->bundle = star::open_bundle(entry.at("of").get<std::string>());
  const star::ExportSpec& spec = graph->bundle.spec();
  const star::GraphSpec& io = graph->bundle.contract().find(name)->second;
  star::SymbolSizes sizes;
  const std::vector<std::string> symbols = star::capacity_symbols(spec);
  const std::int64_t room = entry.at("room").is_null() ? spec.room() : entry.at("room").get<std::int64_t>();
  for (std::size_t i = 0; i < symbols.size(); ++i)
    sizes[symbols[i]] = spec.capacities()[i] - spec.room() + room;
  if (entry.at("weights") == "shared") {
    const auto path =
        graph->bundle.path(name == "vision" ? "graphs/vision.safetensors" : "graphs/decoder.safetensors");
    graph->files.emplace_back(path);
    graph->weights = star::tensors_of(graph->files.back().data(), path);
  }
  for (const star::MappedTensor& weight : graph->weights) {
    star::TensorSpec of{weight.name, star::DType::kUint8, {weight.shape.begin(), weight.shape.end()}, false};
    graph->tensors[weight.name] = {true, type_named(weight.dtype), std::move(of), "", &weight};
  }
  for (const star::TensorSpec& tensor : io.inputs) {
    graph->tensors[tensor.name] = {true, type_named(star::tensorrt_name(tensor.dtype)), pinned(tensor, sizes),
                                   ""};
  }
  for (const star::TensorSpec& tensor : io.outputs) {
    const auto alias = io.aliases.find(tensor.name);
    graph->tensors[tensor.name] = {false, type_named(star::tensorrt_name(tensor.dtype)),
                                   pinned(tensor, sizes), alias == io.aliases.end() ? "" : alias->second};
  }
  graph->session = open_graph(graph->bundle, name);
  return graph;
}

class FakeRuntime : public IRuntime {
 public:
  explicit FakeRuntime(ILogger* logger) : logger_(logger) {}

  ICudaEngine* deserializeCudaEngine(const void* content, std::size_t size) noexcept override {
    try {
      return std::make_unique<FakeEngine>(read_graph({static_cast<const char*>(content), size}, logger_))
          .release();
    } catch (const std::exception& error) {
      logger_->log(ILogger::Severity::kERROR,
                   ("not an engine of the fake GPU:\n " + std::string(error.what())).c_str());
      return nullptr;
    }
  }
  IRuntime* loadRuntime(const char*) noexcept override { return nullptr; }
#ifdef STAR_TENSORRT_RTX
  EngineValidity getEngineValidity(const void*, std::int64_t,
                                   std::uint64_t* diagnostics) const noexcept override {
    *diagnostics = fake_gpu()->fits ? 0 : 4;
    return fake_gpu()->fits ? EngineValidity::kVALID : EngineValidity::kINVALID;
  }
#endif

 private:
  ILogger* logger_;
};

}  // namespace

extern "C" {

std::int32_t getInferLibMajorVersion() { return fake_gpu()->tensorrt[0]; }
std::int32_t getInferLibMinorVersion() { return fake_gpu()->tensorrt[1]; }
std::int32_t getInferLibPatchVersion() { return fake_gpu()->tensorrt[2]; }
std::int32_t getInferLibBuildVersion() { return fake_gpu()->tensorrt[3]; }

void* createInferRuntime_INTERNAL(void* logger, std::int32_t) {
  ++fake_gpu()->runtimes;
  auto* log = static_cast<nvinfer1::ILogger*>(logger);
  if (!fake_gpu()->tensorrt_starts) log->log(nvinfer1::ILogger::Severity::kERROR, "the fake does not start");
  if (!fake_gpu()->tensorrt_starts) return nullptr;
  return static_cast<nvinfer1::IRuntime*>(std::make_unique<FakeRuntime>(log).release());
}

}  // extern "C"
