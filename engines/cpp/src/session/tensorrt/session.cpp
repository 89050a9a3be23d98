// The TensorRT and TensorRT-RTX backend: a bundle's engines on one GPU.
//
// Everything but KV caches is allocated at load: inputs and outputs at the largest shapes of the engines'
// profiles, one scratch, for the engines of every size of caches alike. Addresses never change, so the CUDA
// graph of a decode step stays valid. Work is queued on one stream and nothing waits for it but reading a
// result.
#include <algorithm>

#include "errors.hpp"
#include "session/engine_facts.hpp"
#include "session/tensorrt.hpp"
#include "session/tensorrt/caches.hpp"
#include "session/tensorrt/runtime.hpp"

namespace star {
namespace {

// Device memory that streamed weights leave free, on top of one sequence's caches.
constexpr std::int64_t kStreamingReserve = std::int64_t{1} << 30;

class TensorRTSession final : public Session {
 public:
  TensorRTSession(const Bundle& bundle, const TensorRTOptions& options)
      : bundle_(bundle),
        facts_(read_facts(bundle, tensorrt_backend())),
        symbols_(capacity_symbols(bundle.spec())) {
    const TensorRTLibrary& library = load_tensorrt(options.library);
    load_cuda(options.cuda_library);
    const std::pair<int, int> capability = require_device();
    check_runnable(bundle, facts_, library.version, capability);
    load_plugins(library, facts_, options);
    machinery_ = std::make_shared<Machinery>();
    machinery_->queue = std::make_shared<Queue>();
    machinery_->queue->argmax = make_argmax(options, capability);
    machinery_->cuda_graph = options.cuda_graph;
    machinery_->weights = shared_weights(bundle, facts_);
    machinery_->runtime.emplace(library, facts_.version, options);
    load_engines();  // while the weights are on their way
    if (facts_.weight_streaming) set_weight_budgets(options.weight_budget);
    prepare();
  }

  ~TensorRTSession() override {
    try {
      synchronize();                  // the GPU may still be using what is freed
    } catch (const PlatformError&) {  // of work whose result nobody has read
    }
  }
  TensorRTSession(const TensorRTSession&) = delete;
  TensorRTSession& operator=(const TensorRTSession&) = delete;

  const ExportSpec& spec() const override { return bundle_.spec(); }
  const Contract& contract() const override { return bundle_.contract(); }
  std::optional<std::int64_t> max_batch() const override { return facts_.max_batch(); }

  // The smallest that there are engines for.
  std::vector<std::int64_t> capacities(std::span<const std::int64_t> needed) const override {
    for (const auto& [size, engines] : facts_.by_capacities) {
      if (std::equal(needed.begin(), needed.end(), size.begin(), size.end(), std::less_equal<>()))
        return size;
    }
    return spec().capacities();
  }

  std::shared_ptr<Caches> allocate_caches(std::int64_t batch,
                                          std::span<const std::int64_t> capacities) override {
    if (batch < 1 || batch > facts_.max_batch()) {
      throw SettingsError("the decode engine takes 1 to " + std::to_string(facts_.max_batch()) +
                          " sequences, got " + std::to_string(batch) +
                          "; for more, build the engines again: " + rebuild_command(bundle_, facts_.backend));
    }
    return std::make_shared<TensorRTCaches>(machinery_, contract().find(kDecode)->second, batch,
                                            std::vector(capacities.begin(), capacities.end()), symbols_);
  }

  Outputs run(std::string_view graph, const Feeds& feeds, Caches* caches) override {
    auto* own = static_cast<TensorRTCaches*>(caches);
    const std::vector<std::int64_t> size = own ? own->capacities() : spec().capacities();
    const LoadedEngine& loaded = machinery_->engines.find(graph)->second.at(size);
    GraphMemory& memory = *memory_.find(graph)->second;
    Shapes shapes = shapes_of(feeds);
    Addresses addresses;
    for (const TensorSpec& output : memory.plain_outputs())
      addresses[output.name] = memory.output(output.name);
    if (own != nullptr) {
      shapes.insert(own->shapes().begin(), own->shapes().end());
      addresses.insert(own->addresses().begin(), own->addresses().end());
    }
    const Shapes outputs = memory.output_shapes(shapes, loaded.rules);
    memory.feed(feeds, loaded.tensors, addresses);
    Execution& execution = own != nullptr && graph == kDecode
                               ? own->execution()
                               : *machinery_->shared.at({std::string(graph), size});
    execution.run(shapes, outputs, addresses);
    Outputs results;
    for (const TensorSpec& output : memory.plain_outputs()) {
      const Shape& shape = outputs.find(output.name)->second;
      results.emplace(output.name,
                      std::make_shared<TensorRTArray>(memory_.find(graph)->second, output, shape));
    }
    return results;
  }

  void synchronize() override { machinery_->queue->stream.synchronize(); }

 private:
  std::optional<Argmax> make_argmax(const TensorRTOptions& options, std::pair<int, int> capability) const {
    try {
      return Argmax(options.nvrtc_library, capability, facts_.max_batch());
    } catch (const PlatformError&) {  // logits are copied then
      return std::nullopt;
    }
  }

  static Shapes shapes_of(const Feeds& feeds) {
    Shapes shapes;
    for (const auto& [name, tensor] : feeds) {
      const auto* array = std::get_if<SharedArray>(&tensor);
      shapes[name] = array != nullptr ? (*array)->shape() : std::get<HostTensor>(tensor).shape;
    }
    return shapes;
  }

  // All of them, at once: what shares one scratch has to know the largest need, and a damaged engine shows
  // before there are requests.
  void load_engines() {
    const std::string command = rebuild_command(bundle_, facts_.backend);
    static const std::vector<MappedTensor> kNone;
    const auto& weights = machinery_->weights ? machinery_->weights->tensors() : kNone;
    for (const auto& [size, engines] : facts_.by_capacities) {
      for (const auto& [graph, file] : engines.files) {
        ShapeRules rules(graph, contract().find(graph)->second, engines.profiles.find(graph)->second,
                         command);
        machinery_->engines[graph].emplace(size, load_engine(machinery_->runtime->get(), bundle_.path(file),
                                                             std::move(rules), weights, command));
      }
    }
  }

  // Divides the GPU's memory among the weights of all engines: TensorRT's automatic budget sees one engine,
  // so that the first would take what the others need. Decode comes first: it reads all of its weights for
  // every token, the others once per request.
  void set_weight_budgets(const std::optional<std::int64_t>& total) {
    const auto engine_of = [&](std::string_view graph) -> nvinfer1::ICudaEngine& {
      return *machinery_->engines.find(graph)->second.at(spec().capacities()).engine;
    };
    for (const std::string_view graph : kGraphs) engine_of(graph).setWeightStreamingBudgetV2(0);
    const auto free = static_cast<std::int64_t>(gpu_memory().free);
    std::int64_t left = std::max<std::int64_t>(0, total.value_or(free - kStreamingReserve - slot_bytes()));
    for (auto graph = kGraphs.rbegin(); graph != kGraphs.rend(); ++graph) {
      const std::int64_t budget = std::min(engine_of(*graph).getStreamableWeightsSize(), left);
      engine_of(*graph).setWeightStreamingBudgetV2(budget);
      left -= budget;
    }
  }

  // Bytes of the KV caches of one sequence.
  std::int64_t slot_bytes() const {
    SymbolSizes known{{"B", 1}};
    const std::vector<std::int64_t> sizes = spec().capacities();
    for (std::size_t i = 0; i < symbols_.size(); ++i) known[symbols_[i]] = sizes[i];
    std::size_t bytes = 0;
    for (const TensorSpec& tensor : contract().find(kDecode)->second.caches()) {
      Shape shape;
      for (const Dim& dim : tensor.shape) shape.push_back(value_of(dim, known, known));
      bytes += bytes_of(tensor.dtype, shape);
    }
    return static_cast<std::int64_t>(bytes);
  }

  void prepare() {
    std::size_t scratch = 0;
    for (const auto& [graph, by_size] : machinery_->engines) {
      for (const auto& [size, loaded] : by_size) scratch = std::max(scratch, loaded.scratch_bytes());
    }
    machinery_->scratch.emplace(scratch, "the engines' activations");
    for (const auto& [graph, by_size] : machinery_->engines) {
      const ShapeRules& largest = by_size.at(spec().capacities()).rules;
      memory_.emplace(graph, std::make_shared<GraphMemory>(machinery_->queue, largest));
      if (graph == kDecode) continue;
      for (const auto& [size, loaded] : by_size) {
        machinery_->shared.emplace(std::pair(graph, size), machinery_->execution(graph, size));
      }
    }
  }

  Bundle bundle_;
  EngineFacts facts_;
  std::vector<std::string> symbols_;
  std::shared_ptr<Machinery> machinery_;
  std::map<std::string, std::shared_ptr<GraphMemory>, std::less<>> memory_;
};

}  // namespace

std::unique_ptr<Session> open_tensorrt(const Bundle& bundle, const TensorRTOptions& options) {
  return std::make_unique<TensorRTSession>(bundle, options);
}

}  // namespace star
