// What every backend offers: the three graphs of one bundle, loaded and ready. The steps know this alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "bundle/contract.hpp"

namespace star {

// A tensor in the caller's memory, which lives until the run that it is fed to returns.
struct HostTensor {
  DType dtype = DType::kFloat32;
  std::vector<std::int64_t> shape;
  const void* data = nullptr;
};

// A tensor in memory of its own.
struct HostArray {
  DType dtype = DType::kFloat32;
  std::vector<std::int64_t> shape;
  std::vector<std::byte> data;

  HostTensor view() const { return {dtype, shape, data.data()}; }
};

// A tensor where the backend keeps it, valid until the graph that gave it runs again.
class DeviceArray {
 public:
  virtual ~DeviceArray() = default;
  virtual DType dtype() const = 0;
  virtual const std::vector<std::int64_t>& shape() const = 0;
  // Waits for what computes it.
  virtual HostArray copy() const = 0;
  // Index of the largest of each row of float32 `[B, N]`, found on the device. Ties go to the lower index; -1
  // for a row whose largest, as NumPy orders them, is not finite.
  virtual std::vector<std::int64_t> argmax() const = 0;
};

using SharedArray = std::shared_ptr<const DeviceArray>;
using Tensor = std::variant<HostTensor, SharedArray>;
using Feeds = std::map<std::string, Tensor, std::less<>>;
using Outputs = std::map<std::string, SharedArray, std::less<>>;

// The KV caches of one or more sequences, updated in place.
class Caches {
 public:
  virtual ~Caches() = default;
  // Copy of the cache with this past name: `[B, Hkv, capacity, D]`.
  virtual HostArray copy(std::string_view past) const = 0;
  // Overwrite with zeros: NaNs of one sequence would reach the next, even where it sees nothing.
  virtual void zero() = 0;
  // Tokens of a sequence that they have room for, per layer group.
  virtual const std::vector<std::int64_t>& capacities() const = 0;

  // Who takes the caches gets a number. Whoever holds an older one holds them no more.
  std::uint64_t claim() { return ++holder_; }
  std::uint64_t holder() const { return holder_; }

 private:
  std::uint64_t holder_ = 0;
};

// The three graphs on one device. One thread at a time may use it.
class Session {
 public:
  virtual ~Session() = default;
  virtual const ExportSpec& spec() const = 0;
  virtual const Contract& contract() const = 0;
  // Sequences that can be decoded at once; nothing where only memory limits them.
  virtual std::optional<std::int64_t> max_batch() const = 0;
  // Tokens of a sequence that caches have room for, per layer group, of which `needed` are needed.
  virtual std::vector<std::int64_t> capacities(std::span<const std::int64_t> needed) const = 0;
  // Zeroed KV caches; `capacities` is what the function of that name gave.
  virtual std::shared_ptr<Caches> allocate_caches(std::int64_t batch,
                                                  std::span<const std::int64_t> capacities) = 0;
  // Runs one graph on every input but the caches, which prefill and decode update in place. Gives every
  // output but the caches; a GPU may still be computing them.
  virtual Outputs run(std::string_view graph, const Feeds& feeds, Caches* caches) = 0;
  // Waits until everything that was run is done, for those who measure.
  virtual void synchronize() = 0;
};

}  // namespace star
