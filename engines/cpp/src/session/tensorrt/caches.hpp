// KV caches on the GPU, and what runs decode steps on them.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "session/session.hpp"
#include "session/tensorrt/graph.hpp"
#include "session/tensorrt/runtime.hpp"
#include "session/tensorrt/weights.hpp"

namespace star {

// What executes the engines of one session. What stands later is let go of first.
struct Machinery {
  std::optional<Runtime> runtime;
  std::shared_ptr<Queue> queue;
  std::shared_ptr<const SharedWeights> weights;
  std::map<std::string, EnginesBySize, std::less<>> engines;
  std::optional<DeviceBuffer> scratch;  // for the engines of every size of caches alike
  bool cuda_graph = true;
  // Those of the other graphs, by graph and capacities.
  std::map<std::pair<std::string, std::vector<std::int64_t>>, std::unique_ptr<Execution>> shared;
  // Executions of decode steps, by capacities, whose caches are gone: to make one takes TensorRT long, and
  // TensorRT-RTX compiles kernels for it.
  std::map<std::vector<std::int64_t>, std::vector<std::unique_ptr<Execution>>> idle;

  Machinery() = default;
  ~Machinery();
  Machinery(const Machinery&) = delete;
  Machinery& operator=(const Machinery&) = delete;

  std::unique_ptr<Execution> execution(std::string_view graph,
                                       const std::vector<std::int64_t>& capacities) const;
};

// KV caches in one allocation; decode has a context, and a CUDA graph, for each of these.
class TensorRTCaches final : public Caches {
 public:
  // Throws PlatformError if the GPU has no room.
  TensorRTCaches(std::shared_ptr<Machinery> machinery, const GraphSpec& decode, std::int64_t batch,
                 std::vector<std::int64_t> capacities, const std::vector<std::string>& symbols);
  ~TensorRTCaches() override;
  TensorRTCaches(const TensorRTCaches&) = delete;
  TensorRTCaches& operator=(const TensorRTCaches&) = delete;

  HostArray copy(std::string_view past) const override;
  void zero() override;
  const std::vector<std::int64_t>& capacities() const override { return capacities_; }

  const Shapes& shapes() const { return shapes_; }
  // An engine writes in place: one address for what it reads and what it writes.
  const Addresses& addresses() const { return addresses_; }
  // What runs decode steps on these caches.
  Execution& execution();

 private:
  std::shared_ptr<Machinery> machinery_;
  std::vector<std::int64_t> capacities_;
  std::map<std::string, DType, std::less<>> dtypes_;
  Shapes shapes_;
  std::optional<DeviceTensors> memory_;
  Addresses addresses_;
  std::unique_ptr<Execution> execution_;
};

}  // namespace star
