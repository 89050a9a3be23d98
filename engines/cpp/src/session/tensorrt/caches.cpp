#include "session/tensorrt/caches.hpp"

#include "errors.hpp"

namespace star {

Machinery::~Machinery() {
  if (!queue) return;
  try {
    queue->stream.synchronize();    // the GPU may still be using what is freed
  } catch (const PlatformError&) {  // of work whose result nobody has read
  }
}

std::unique_ptr<Execution> Machinery::execution(std::string_view graph,
                                                const std::vector<std::int64_t>& capacities) const {
  const bool capture = cuda_graph && graph == kDecode;  // prefill's length differs from run to run
  static const Addresses kNone;
  const LoadedEngine& loaded = engines.find(graph)->second.at(capacities);
  return std::make_unique<Execution>(loaded, queue->stream, *scratch, weights ? weights->addresses() : kNone,
                                     capture);
}

TensorRTCaches::TensorRTCaches(std::shared_ptr<Machinery> machinery, const GraphSpec& decode,
                               std::int64_t batch, std::vector<std::int64_t> capacities,
                               const std::vector<std::string>& symbols)
    : machinery_(std::move(machinery)), capacities_(std::move(capacities)) {
  SymbolSizes known{{"B", batch}};
  for (std::size_t i = 0; i < symbols.size(); ++i) known[symbols[i]] = capacities_[i];
  std::map<std::string, std::size_t, std::less<>> sizes;
  for (const TensorSpec& tensor : decode.caches()) {
    Shape shape;
    for (const Dim& dim : tensor.shape) shape.push_back(value_of(dim, known, known));
    sizes[tensor.name] = bytes_of(tensor.dtype, shape);
    dtypes_[tensor.name] = tensor.dtype;
    shapes_[tensor.name] = std::move(shape);
  }
  memory_.emplace(sizes, "the KV caches of " + std::to_string(batch) + " sequences");
  for (const auto& [present, past] : decode.aliases) {
    addresses_[present] = addresses_[past] = memory_->address(past);
  }
  zero();
}

TensorRTCaches::~TensorRTCaches() {
  try {
    machinery_->queue->stream.synchronize();  // a run may still be writing
  } catch (const PlatformError&) {            // of work whose result nobody has read
  }
  if (execution_) machinery_->idle[capacities_].push_back(std::move(execution_));
}

HostArray TensorRTCaches::copy(std::string_view past) const {
  return machinery_->queue->fetch(memory_->address(past), dtypes_.find(past)->second,
                                  shapes_.find(past)->second);
}

void TensorRTCaches::zero() { machinery_->queue->stream.zero(memory_->data(), memory_->size()); }

Execution& TensorRTCaches::execution() {
  if (!execution_) {
    std::vector<std::unique_ptr<Execution>>& idle = machinery_->idle[capacities_];
    if (idle.empty()) {
      execution_ = machinery_->execution(kDecode, capacities_);
    } else {
      execution_ = std::move(idle.back());
      idle.pop_back();
    }
  }
  return *execution_;
}

}  // namespace star
