#include "session/tensorrt/graph.hpp"

#include <algorithm>
#include <cstring>

#include "errors.hpp"
#include "sampling/sampler.hpp"

namespace star {
namespace {

using Sizes = std::map<std::string, std::size_t, std::less<>>;

DType dtype_of(const Tensor& tensor) {
  if (const auto* array = std::get_if<SharedArray>(&tensor)) return (*array)->dtype();
  return std::get<HostTensor>(tensor).dtype;
}

}  // namespace

HostArray Queue::fetch(const std::byte* address, DType dtype, const Shape& shape) const {
  HostArray array{dtype, shape, std::vector<std::byte>(bytes_of(dtype, shape))};
  for (std::size_t start = 0; start < array.data.size(); start += landing.size()) {
    const std::size_t size = std::min(landing.size(), array.data.size() - start);
    stream.download(landing.data(), address + start, size);
    stream.synchronize();
    std::memcpy(array.data.data() + start, landing.data(), size);
  }
  return array;
}

GraphMemory::GraphMemory(std::shared_ptr<Queue> queue, const ShapeRules& rules)
    : queue_(std::move(queue)), name_(rules.graph()) {
  const GraphSpec& io = rules.io();
  Sizes inputs, outputs;
  const std::vector<TensorSpec> caches = io.caches();
  for (const TensorSpec& tensor : io.inputs) {
    const auto is_it = [&](const TensorSpec& cache) { return cache.name == tensor.name; };
    if (std::any_of(caches.begin(), caches.end(), is_it)) continue;
    specs_.emplace(tensor.name, tensor);
    inputs[tensor.name] = rules.largest(tensor);
  }
  for (const TensorSpec& tensor : io.outputs) {
    if (io.aliases.contains(tensor.name)) continue;
    plain_outputs_.push_back(tensor);
    outputs[tensor.name] = rules.largest(tensor);
  }
  outputs_.emplace(outputs, "the outputs of " + name_);
  inputs_.emplace(inputs, "the inputs of " + name_);
  staging_.emplace(inputs_->size());
}

const Shapes& GraphMemory::output_shapes(const Shapes& shapes, const ShapeRules& rules) {
  if (shapes != checked_.first) checked_ = {shapes, rules.output_shapes(rules.check(shapes))};
  return checked_.second;
}

void GraphMemory::feed(const Feeds& feeds, const EngineTensors& tensors, Addresses& addresses) {
  copied_.synchronize();  // the run before may still be reading the staging memory
  for (const auto& [name, tensor] : feeds) {
    addresses[name] = place(specs_.find(name)->second, tensor, tensors.find(name)->second.on_host);
  }
  queue_->stream.record(copied_);
  ++runs_;
}

std::byte* GraphMemory::place(const TensorSpec& spec, const Tensor& tensor, bool on_host) {
  if (dtype_of(tensor) != spec.dtype) {
    throw InputError(name_ + ": " + spec.name + " must be " + std::string(row_of(spec.dtype).name) +
                     ", got " + std::string(row_of(dtype_of(tensor)).name));
  }
  HostArray copied;
  HostTensor host;
  if (const auto* array = std::get_if<SharedArray>(&tensor)) {
    const auto* own = dynamic_cast<const TensorRTArray*>(array->get());
    if (own != nullptr && own->is_of(*queue_)) return own->address();
    copied = (*array)->copy();
    host = copied.view();
  } else {
    host = std::get<HostTensor>(tensor);
  }
  const std::size_t offset = inputs_->offset(spec.name), size = bytes_of(host.dtype, host.shape);
  std::byte* const staged = staging_->data() + offset;
  std::memcpy(staged, host.data, size);
  if (on_host) return staged;
  std::byte* const address = inputs_->address(spec.name);
  queue_->stream.upload(address, staged, size);
  return address;
}

std::byte* TensorRTArray::address() const {
  if (owner_->runs() != run_) {
    throw InputError(spec_.name + " was overwritten by a later run of " + owner_->name() +
                     "; read it with copy() before that");
  }
  return owner_->output(spec_.name);
}

std::vector<std::int64_t> TensorRTArray::argmax() const {
  const Queue& queue = owner_->queue();
  if (queue.argmax) return queue.argmax->find(queue.stream, address(), shape_.front(), shape_.back());
  const HostArray logits = copy();
  const auto vocabulary = static_cast<std::size_t>(shape_.back());
  const auto* values = reinterpret_cast<const float*>(logits.data.data());
  std::vector<std::int64_t> tokens;
  for (std::int64_t row = 0; row < shape_.front(); ++row) {
    tokens.push_back(
        star::argmax(std::span(values + static_cast<std::size_t>(row) * vocabulary, vocabulary)));
  }
  return tokens;
}

}  // namespace star
