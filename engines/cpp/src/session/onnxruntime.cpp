#include "session/onnxruntime.hpp"

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <set>

#include "errors.hpp"
#include "sampling/sampler.hpp"
#include "session/library.hpp"
#include "session/mapped.hpp"

namespace star {
namespace {

// Caches have room for a multiple of so many tokens, so that few requests need others than the one before.
constexpr std::int64_t kCapacityStep = 64;

ONNXTensorElementDataType element_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case DType::kFloat16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case DType::kBfloat16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    case DType::kInt64:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    case DType::kInt8:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
    case DType::kUint8:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  }
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
}

DType dtype_of(ONNXTensorElementDataType type) {
  for (const DTypeRow& row : kDTypes) {
    if (element_type(row.dtype) == type) return row.dtype;
  }
  throw BundleError("a graph gives tensors of element type " + std::to_string(type) +
                    ", which the contract does not have; build the bundle again");
}

// As many as no memory has where they cannot be counted.
std::size_t bytes_of(DType dtype, const std::vector<std::int64_t>& shape) {
  return star::bytes_of(row_of(dtype).itemsize, shape).value_or(std::numeric_limits<std::size_t>::max());
}

Ort::MemoryInfo host_memory() { return Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU); }

// ONNX Runtime's view of memory that it does not own, and does not write unless it is bound as an output.
Ort::Value view_of(const HostTensor& tensor) {
  return Ort::Value::CreateTensor(host_memory(), const_cast<void*>(tensor.data),
                                  bytes_of(tensor.dtype, tensor.shape), tensor.shape.data(),
                                  tensor.shape.size(), element_type(tensor.dtype));
}

// A tensor in ONNX Runtime's memory.
class OnnxRuntimeArray : public DeviceArray {
 public:
  explicit OnnxRuntimeArray(Ort::Value value)
      : value_(std::move(value)),
        dtype_(dtype_of(value_.GetTensorTypeAndShapeInfo().GetElementType())),
        shape_(value_.GetTensorTypeAndShapeInfo().GetShape()) {}

  DType dtype() const override { return dtype_; }
  const std::vector<std::int64_t>& shape() const override { return shape_; }
  const Ort::Value& value() const { return value_; }

  HostArray copy() const override {
    const auto* data = static_cast<const std::byte*>(value_.GetTensorRawData());
    return {dtype_, shape_, std::vector<std::byte>(data, data + bytes_of(dtype_, shape_))};
  }

  std::vector<std::int64_t> argmax() const override {
    const auto rows = static_cast<std::size_t>(shape_.at(0)),
               columns = static_cast<std::size_t>(shape_.at(1));
    const std::span values(value_.GetTensorData<float>(), rows * columns);
    std::vector<std::int64_t> best;
    for (std::size_t row = 0; row < rows; ++row) {
      best.push_back(star::argmax(values.subspan(row * columns, columns)));
    }
    return best;
  }

 private:
  Ort::Value value_;
  DType dtype_;
  std::vector<std::int64_t> shape_;
};

struct ReleaseContainer {
  void operator()(OrtPrepackedWeightsContainer* container) const {
    Ort::GetApi().ReleasePrepackedWeightsContainer(container);
  }
};

// Holds what graphs pack of weights. Products of few bits that newer ONNX Runtimes (1.32 does) make of
// DequantizeLinear are named by their content, so that prefill and decode find the same there.
using PackedWeights = std::unique_ptr<OrtPrepackedWeightsContainer, ReleaseContainer>;

PackedWeights new_packed_weights() {
  OrtPrepackedWeightsContainer* container = nullptr;
  Ort::ThrowOnError(Ort::GetApi().CreatePrepackedWeightsContainer(&container));
  return PackedWeights(container);
}

struct Free {
  void operator()(std::byte* memory) const { std::free(memory); }
};

// KV caches, with one binding per graph: the same address as input and as output lets TensorScatter write in
// place instead of copying the cache.
class OnnxRuntimeCaches : public Caches {
 public:
  explicit OnnxRuntimeCaches(std::vector<std::int64_t> capacities) : capacities_(std::move(capacities)) {}

  void add(const std::string& past, DType dtype, std::vector<std::int64_t> shape) {
    const std::size_t bytes = bytes_of(dtype, shape);
    // Pages that nobody writes take no memory.
    Memory memory(static_cast<std::byte*>(std::calloc(bytes, 1)));
    if (!memory)
      throw PlatformError("there is no memory for KV caches of " + std::to_string(bytes) + " bytes");
    Ort::Value value = view_of({dtype, shape, memory.get()});
    entries_.emplace(past, Entry{std::move(memory), bytes, dtype, std::move(shape), std::move(value)});
  }

  HostArray copy(std::string_view past) const override {
    const Entry& entry = entries_.find(past)->second;
    const std::byte* data = entry.memory.get();
    return {entry.dtype, entry.shape, std::vector<std::byte>(data, data + entry.bytes)};
  }

  void zero() override {
    for (auto& [past, entry] : entries_) std::memset(entry.memory.get(), 0, entry.bytes);
  }

  const std::vector<std::int64_t>& capacities() const override { return capacities_; }

  // The binding of a graph; `make` makes one without caches.
  template <typename Make>
  Ort::IoBinding& binding(const std::string& name, const GraphSpec& graph, Make make) {
    if (const auto known = bindings_.find(name); known != bindings_.end()) return known->second;
    Ort::IoBinding binding = make();
    for (const auto& [present, past] : graph.aliases) {
      const Ort::Value& value = entries_.at(past).value;
      binding.BindInput(past.c_str(), value);
      binding.BindOutput(present.c_str(), value);
    }
    return bindings_.emplace(name, std::move(binding)).first->second;
  }

 private:
  using Memory = std::unique_ptr<std::byte, Free>;
  struct Entry {
    Memory memory;
    std::size_t bytes;
    DType dtype;
    std::vector<std::int64_t> shape;
    Ort::Value value;
  };

  std::vector<std::int64_t> capacities_;
  std::map<std::string, Entry, std::less<>> entries_;
  std::map<std::string, Ort::IoBinding, std::less<>> bindings_;
};

class OnnxRuntimeSession : public Session {
 public:
  OnnxRuntimeSession(const Bundle& bundle, const OnnxRuntimeOptions& options,
                     const OnnxRuntimeLibrary& library)
      : bundle_(bundle), options_(options), version_(library.version), env_(ORT_LOGGING_LEVEL_ERROR, "star") {
    own_capacities_ = bundle.spec().capacities();
    packed_ = new_packed_weights();
    map_weights();
    for (const std::string_view graph : kGraphs) {
      graphs_.emplace(graph, load(graph));
#ifdef __GLIBC__
      if (spec().quantization) ::malloc_trim(0);  // what weights took before they were packed: a fifth of all
#endif
    }
  }

  const ExportSpec& spec() const override { return bundle_.spec(); }
  const Contract& contract() const override { return bundle_.contract(); }
  std::optional<std::int64_t> max_batch() const override { return std::nullopt; }

  std::vector<std::int64_t> capacities(std::span<const std::int64_t> needed) const override {
    std::vector<std::int64_t> capacities = own_capacities_;
    if (spec().fixed_capacities) return capacities;
    for (std::size_t i = 0; i < capacities.size(); ++i) {
      const std::int64_t rounded = (needed[i] + kCapacityStep - 1) / kCapacityStep * kCapacityStep;
      capacities[i] = std::min(capacities[i], rounded);
    }
    return capacities;
  }

  std::shared_ptr<Caches> allocate_caches(std::int64_t batch,
                                          std::span<const std::int64_t> capacities) override {
    auto caches = std::make_shared<OnnxRuntimeCaches>(std::vector(capacities.begin(), capacities.end()));
    std::map<std::string, std::int64_t> sizes{{"B", batch}};
    const std::vector<std::string> symbols = capacity_symbols(spec());
    for (std::size_t i = 0; i < symbols.size(); ++i) sizes[symbols[i]] = capacities[i];
    for (const TensorSpec& tensor : contract().find(kDecode)->second.caches()) {
      std::vector<std::int64_t> shape;
      for (const Dim& dim : tensor.shape)
        shape.push_back(dim.symbol.empty() ? dim.size : sizes.at(dim.symbol));
      caches->add(tensor.name, tensor.dtype, std::move(shape));
    }
    return caches;
  }

  Outputs run(std::string_view graph, const Feeds& feeds, Caches* caches) override {
    try {
      return run_bound(graph, feeds, static_cast<OnnxRuntimeCaches*>(caches));
    } catch (const Ort::Exception& error) {
      throw BundleError("ONNX Runtime " + version_ + " cannot run " + bundle_.graph_path(graph).string() +
                        ": " + error.what());
    }
  }

  void synchronize() override {}  // every run waits for its outputs

 private:
  struct Graph {
    Ort::Session session;
    const GraphSpec* contract;
    std::vector<std::string> plain_outputs;
  };

  // Weights in float32 are read where the bundle's files lie in memory, by all graphs.
  void map_weights() {
    for (const std::filesystem::path& path : bundle_.weights()) {
      files_.emplace_back(path);
      for (const MappedTensor& tensor : tensors_of(files_.back().data(), path)) {
        if (tensor.dtype != "F32") continue;
        weights_.emplace_back(tensor.name, view_of({DType::kFloat32, tensor.shape, tensor.data.data()}));
      }
    }
  }

  Ort::SessionOptions options_of(std::string_view graph) const {
    Ort::SessionOptions options;
    options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_ERROR);  // warnings about graphs that work are noise
    options.DisableCpuMemArena();  // it would keep each graph's tensors for its next run
    if (!options_.spinning) {  // as engines/onnxruntime.py
      options.AddConfigEntry("session.force_spinning_stop", "1");
      options.AddConfigEntry("session.intra_op.spin_duration_us", "10");
    }
    // 4: activations are rounded to 8 bits, block by block.
    options.AddConfigEntry("session.qdq_matmulnbits_accuracy_level", options_.exact ? "1" : "4");
    // Unpacked, products of few bits are slow; others read the files, which are in memory once.
    if (!spec().quantization) options.AddConfigEntry("session.disable_prepacking", "1");
    if (options_.threads) options.SetIntraOpNumThreads(*options_.threads);
    for (const auto& [name, value] : weights_) options.AddInitializer(name.c_str(), value);
    options.AddConfigEntry("session.model_external_initializers_file_folder_path",
                           bundle_.graph_path(graph).parent_path().c_str());
    // It would turn each weight into a copy; what comes later lets products read them as they lie.
    if (spec().dtype == DType::kFloat32) {
      options.AddConfigEntry("optimization.disable_specified_optimizers", "ConstantFolding");
    }
    return options;
  }

  Graph load(std::string_view name) {
    const std::filesystem::path path = bundle_.graph_path(name);
    try {
      Graph graph{Ort::Session(env_, path.c_str(), options_of(name), packed_.get()),
                  &contract().find(name)->second,
                  {}};
      graph.plain_outputs = graph.contract->plain_outputs();
      check_border(graph, path);
      return graph;
    } catch (const Ort::Exception& error) {
      throw BundleError("ONNX Runtime " + version_ + " cannot load " + path.string() + ": " + error.what());
    }
  }

  // Refuses a graph that lacks inputs or outputs of the contract.
  static void check_border(const Graph& graph, const std::filesystem::path& path) {
    const Ort::AllocatorWithDefaultOptions allocator;
    std::set<std::string> missing;
    for (const TensorSpec& tensor : graph.contract->inputs) missing.insert(tensor.name);
    for (std::size_t i = 0; i < graph.session.GetInputCount(); ++i) {
      missing.erase(graph.session.GetInputNameAllocated(i, allocator).get());
    }
    if (missing.empty()) {
      for (const TensorSpec& tensor : graph.contract->outputs) missing.insert(tensor.name);
      for (std::size_t i = 0; i < graph.session.GetOutputCount(); ++i) {
        missing.erase(graph.session.GetOutputNameAllocated(i, allocator).get());
      }
    }
    if (missing.empty()) return;
    throw BundleError(path.string() + " lacks " + *missing.begin() +
                      ", which the manifest says it has; build the bundle again");
  }

  // A binding without caches; plain outputs come first, in the order of the contract.
  static Ort::IoBinding new_binding(Graph& graph) {
    Ort::IoBinding binding(graph.session);
    for (const std::string& name : graph.plain_outputs) binding.BindOutput(name.c_str(), host_memory());
    return binding;
  }

  Outputs run_bound(std::string_view name, const Feeds& feeds, OnnxRuntimeCaches* caches) {
    Graph& graph = graphs_.find(name)->second;
    const auto make = [&graph] { return new_binding(graph); };
    std::optional<Ort::IoBinding> own;
    if (caches == nullptr) own.emplace(make());
    Ort::IoBinding& binding =
        caches == nullptr ? *own : caches->binding(std::string(name), *graph.contract, make);
    std::vector<Ort::Value> views;
    for (const auto& [input, tensor] : feeds) {
      if (const auto* array = std::get_if<SharedArray>(&tensor)) {
        binding.BindInput(input.c_str(), static_cast<const OnnxRuntimeArray&>(**array).value());
      } else {
        binding.BindInput(input.c_str(), views.emplace_back(view_of(std::get<HostTensor>(tensor))));
      }
    }
    // Anew at every run: sizes change, and old results stay valid.
    for (const std::string& output : graph.plain_outputs) binding.BindOutput(output.c_str(), host_memory());
    graph.session.Run(Ort::RunOptions(), binding);
    binding.SynchronizeOutputs();
    std::vector<Ort::Value> values = binding.GetOutputValues();
    Outputs outputs;
    for (std::size_t i = 0; i < graph.plain_outputs.size(); ++i) {
      outputs.emplace(graph.plain_outputs[i], std::make_shared<OnnxRuntimeArray>(std::move(values.at(i))));
    }
    return outputs;
  }

  // What stands later is let go of first: the graphs, then the weights that they read.
  Bundle bundle_;
  OnnxRuntimeOptions options_;
  std::string version_;
  std::vector<std::int64_t> own_capacities_;
  Ort::Env env_;
  std::vector<MappedFile> files_;
  std::vector<std::pair<std::string, Ort::Value>> weights_;
  PackedWeights packed_;
  std::map<std::string, Graph, std::less<>> graphs_;
};

}  // namespace

std::unique_ptr<Session> open_onnxruntime(const Bundle& bundle, const OnnxRuntimeOptions& options) {
  if (bundle.spec().dtype == DType::kBfloat16) {
    throw BundleError(bundle.folder.string() + " is bfloat16, which ONNX Runtime cannot run; build with " +
                      option("dtype=") + "float32, or run it on TensorRT");
  }
  const OnnxRuntimeLibrary& library = onnxruntime_library(options.library);
  Ort::InitApi(library.api);
  try {
    return std::make_unique<OnnxRuntimeSession>(bundle, options, library);
  } catch (const Ort::Exception& error) {
    throw PlatformError("ONNX Runtime " + library.version + " does not start: " + error.what());
  }
}

}  // namespace star
