// What an engine accepts, checked before TensorRT is asked: names, dtypes, shapes, profiles. Nothing here
// needs a GPU or TensorRT. Every output size of the contract is an expression of input sizes, so shapes and
// the largest buffers are known up front.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "bundle/contract.hpp"

namespace star {

using Shape = std::vector<std::int64_t>;
using Shapes = std::map<std::string, Shape, std::less<>>;
using SymbolSizes = std::map<std::string, std::int64_t, std::less<>>;

// Smallest, typical and largest shape of one input; engines refuse anything outside.
struct Profile {
  Shape min, opt, max;
};
using Profiles = std::map<std::string, Profile, std::less<>>;

// One input or output as a deserialised engine describes it.
struct EngineTensor {
  bool is_input = false;
  std::string dtype;     // TensorRT's name, such as `HALF`
  Shape shape;           // -1 where it is dynamic
  std::string alias;     // for an output that is written in place, the input whose address it must share
  bool on_host = false;  // whether TensorRT reads it from host memory
};
using EngineTensors = std::map<std::string, EngineTensor, std::less<>>;

// An input that is a weight, as the engine must have it.
struct EngineWeight {
  std::string dtype;  // TensorRT's name
  Shape shape;
};
using EngineWeights = std::map<std::string, EngineWeight, std::less<>>;

std::string_view tensorrt_name(DType dtype);
// `(1, 2)`, as Python writes it.
std::string describe(const Shape& shape);
std::size_t bytes_of(DType dtype, const Shape& shape);

// Throws BundleError with the first difference between an engine's inputs and outputs and the contract's with
// these weights. `command` is what to type to build it again.
void check_engine(const EngineTensors& found, const GraphSpec& io, const EngineWeights& weights,
                  const std::string& engine, const std::string& command);

// The shapes that one engine takes and gives.
class ShapeRules {
 public:
  ShapeRules(std::string graph, const GraphSpec& io, const Profiles& profiles, std::string command)
      : graph_(std::move(graph)), io_(io), profiles_(profiles), command_(std::move(command)) {}

  const std::string& graph() const { return graph_; }
  const GraphSpec& io() const { return io_; }

  // The contract's symbolic sizes for the shapes of all inputs; throws SettingsError if the engine does not
  // take one, with the input, its shape and what the engine takes.
  SymbolSizes check(const Shapes& shapes) const;
  // Shape of every output for the sizes that `check` found.
  Shapes output_shapes(const SymbolSizes& sizes) const;
  // Bytes of an input or output at the largest shapes that the engine takes; throws BundleError if the
  // manifest has no range for one of its sizes.
  std::size_t largest(const TensorSpec& tensor) const;

 private:
  void check_input(const TensorSpec& tensor, const Shape& shape, SymbolSizes& sizes) const;

  std::string graph_;
  GraphSpec io_;
  Profiles profiles_;
  std::string command_;
};

// A size such as `S - V + N2`; its subtracted symbols are looked up in `minus`. Throws std::out_of_range.
std::int64_t value_of(const Dim& dim, const SymbolSizes& plus, const SymbolSizes& minus);

}  // namespace star
