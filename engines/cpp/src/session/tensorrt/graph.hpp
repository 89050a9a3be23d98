// The engines of one graph with the memory of their inputs and outputs, the caches aside.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "session/session.hpp"
#include "session/tensorrt/argmax.hpp"
#include "session/tensorrt/cuda.hpp"
#include "session/tensorrt/engine.hpp"

namespace star {

// Engines of one graph by the capacities of the KV caches that they take.
using EnginesBySize = std::map<std::vector<std::int64_t>, LoadedEngine>;

// The queue of a session, and the pinned memory through which results come back, in pieces when they are
// larger.
struct Queue {
  static constexpr std::size_t kLandingBytes = std::size_t{4} << 20;

  Stream stream;
  PinnedBuffer landing{kLandingBytes};
  std::optional<Argmax> argmax;  // nothing where NVRTC is missing, or does not know the GPU

  // A copy in host memory; waits for the stream.
  HostArray fetch(const std::byte* address, DType dtype, const Shape& shape) const;
};

// Inputs and outputs at the largest shapes that any of the engines takes or gives: addresses never change.
class GraphMemory {
 public:
  // `rules` are those of the bundle's own capacities: no other engine takes or gives more.
  GraphMemory(std::shared_ptr<Queue> queue, const ShapeRules& rules);

  const Queue& queue() const { return *queue_; }
  const std::vector<TensorSpec>& plain_outputs() const { return plain_outputs_; }
  std::byte* output(std::string_view name) const { return outputs_->address(name); }
  std::uint64_t runs() const { return runs_; }
  const std::string& name() const { return name_; }

  // Shape of every output; refuses input shapes outside the profile.
  const Shapes& output_shapes(const Shapes& shapes, const ShapeRules& rules);
  // Brings every input to the GPU, without waiting, and adds where each one lies. Results of earlier runs are
  // gone from here on.
  void feed(const Feeds& feeds, const EngineTensors& tensors, Addresses& addresses);

 private:
  std::byte* place(const TensorSpec& spec, const Tensor& tensor, bool on_host);

  std::shared_ptr<Queue> queue_;
  std::string name_;
  std::map<std::string, TensorSpec, std::less<>> specs_;
  std::vector<TensorSpec> plain_outputs_;
  std::optional<DeviceTensors> outputs_, inputs_;
  std::optional<PinnedBuffer> staging_;
  Event copied_;
  // Checking a hundred caches takes long next to a decode step, whose shapes stay as they are.
  std::pair<Shapes, Shapes> checked_;
  std::uint64_t runs_ = 0;
};

// An engine's output where the engine wrote it, until the engine runs again.
class TensorRTArray : public DeviceArray {
 public:
  TensorRTArray(std::shared_ptr<const GraphMemory> owner, const TensorSpec& spec, Shape shape)
      : owner_(std::move(owner)), spec_(spec), run_(owner_->runs()), shape_(std::move(shape)) {}

  DType dtype() const override { return spec_.dtype; }
  const std::vector<std::int64_t>& shape() const override { return shape_; }
  HostArray copy() const override { return owner_->queue().fetch(address(), spec_.dtype, shape_); }
  std::vector<std::int64_t> argmax() const override;

  // Where it lies on the GPU; throws InputError if a later run has overwritten it.
  std::byte* address() const;
  // Whether it lies in the memory of this session.
  bool is_of(const Queue& queue) const { return &owner_->queue() == &queue; }

 private:
  std::shared_ptr<const GraphMemory> owner_;
  TensorSpec spec_;
  std::uint64_t run_;
  Shape shape_;
};

}  // namespace star
