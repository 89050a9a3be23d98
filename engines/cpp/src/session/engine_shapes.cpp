#include "session/engine_shapes.hpp"

#include <algorithm>
#include <limits>
#include <set>
#include <stdexcept>

#include "errors.hpp"

namespace star {
namespace {

std::string shown(const TensorSpec& tensor, const SymbolSizes& known = {}) {
  std::string text;
  for (const Dim& dim : tensor.shape) {
    const auto found = known.find(dim.symbol);
    const bool is_known = dim.symbol.empty() || found != known.end();
    const std::int64_t size = dim.symbol.empty() ? dim.size : is_known ? found->second : 0;
    text += (text.empty() ? "" : ", ") + (is_known ? std::to_string(size) : "'" + dim.symbol + "'");
  }
  return "(" + text + (tensor.shape.size() == 1 ? ",)" : ")");
}

struct Wanted {
  bool is_input;
  std::string dtype;
  TensorSpec spec;
  std::string alias;
};

std::string fault_of(const Wanted& wanted, const EngineTensor& found) {
  const std::string& name = wanted.spec.name;
  if (found.is_input != wanted.is_input) {
    return "has " + name + " as " + (found.is_input ? "an input" : "an output");
  }
  if (found.dtype != wanted.dtype) {
    return "has " + name + " in " + found.dtype + ", the contract says " + wanted.dtype;
  }
  if (found.alias != wanted.alias) {
    const auto spelled = [](const std::string& alias) { return alias.empty() ? "None" : alias; };
    return "writes " + name + " in place of " + spelled(found.alias) + ", not of " + spelled(wanted.alias);
  }
  bool is_same = wanted.spec.shape.size() == found.shape.size();
  for (std::size_t i = 0; is_same && i < found.shape.size(); ++i) {
    const Dim& dim = wanted.spec.shape[i];
    is_same = !dim.symbol.empty() || dim.size == found.shape[i];
  }
  if (is_same) return "";
  return "has " + name + " as " + describe(found.shape) + ", the contract says " + shown(wanted.spec);
}

std::map<std::string, Wanted> wanted_of(const GraphSpec& io, const EngineWeights& weights) {
  std::map<std::string, Wanted> wanted;
  for (const TensorSpec& tensor : io.inputs) {
    wanted[tensor.name] = {true, std::string(tensorrt_name(tensor.dtype)), tensor, ""};
  }
  for (const auto& [name, weight] : weights) {
    TensorSpec spec{name, DType::kUint8, {weight.shape.begin(), weight.shape.end()}, false};
    wanted[name] = {true, weight.dtype, std::move(spec), ""};
  }
  for (const TensorSpec& tensor : io.outputs) {
    const auto alias = io.aliases.find(tensor.name);
    wanted[tensor.name] = {false, std::string(tensorrt_name(tensor.dtype)), tensor,
                           alias == io.aliases.end() ? "" : alias->second};
  }
  return wanted;
}

}  // namespace

std::string_view tensorrt_name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "FLOAT";
    case DType::kFloat16:
      return "HALF";
    case DType::kBfloat16:
      return "BF16";
    case DType::kInt64:
      return "INT64";
    case DType::kInt8:
      return "INT8";
    case DType::kUint8:
      return "UINT8";
  }
  return "";
}

std::string describe(const Shape& shape) {
  TensorSpec spec;
  spec.shape.assign(shape.begin(), shape.end());
  return shown(spec);
}

std::size_t bytes_of(DType dtype, const Shape& shape) {
  std::size_t bytes = row_of(dtype).itemsize;
  for (const std::int64_t size : shape) {
    const auto count = static_cast<std::size_t>(std::max<std::int64_t>(0, size));
    if (count != 0 && bytes > std::numeric_limits<std::size_t>::max() / 2 / count) {
      throw BundleError("a tensor of shape " + describe(shape) + " fits no memory; build the bundle again");
    }
    bytes *= count;
  }
  return bytes;
}

void check_engine(const EngineTensors& found, const GraphSpec& io, const EngineWeights& weights,
                  const std::string& engine, const std::string& command) {
  const std::map<std::string, Wanted> wanted = wanted_of(io, weights);
  std::set<std::string> names;
  for (const auto& [name, tensor] : wanted) names.insert(name);
  for (const auto& [name, tensor] : found) names.insert(name);
  for (const std::string& name : names) {
    std::string fault;
    if (!found.contains(name)) {
      fault = "lacks " + name;
    } else if (!wanted.contains(name)) {
      fault = "has " + name + ", the contract has not";
    } else {
      fault = fault_of(wanted.at(name), found.find(name)->second);
    }
    if (!fault.empty()) throw BundleError(engine + " " + fault + "; build the engines again: " + command);
  }
}

SymbolSizes ShapeRules::check(const Shapes& shapes) const {
  SymbolSizes sizes;
  for (const TensorSpec& tensor : io_.inputs) {
    const auto shape = shapes.find(tensor.name);
    if (shape == shapes.end()) throw SettingsError(graph_ + " takes " + tensor.name + ", which is not given");
    check_input(tensor, shape->second, sizes);
  }
  for (const auto& [name, shape] : shapes) {
    const auto is_this = [&name = name](const TensorSpec& tensor) { return tensor.name == name; };
    if (std::none_of(io_.inputs.begin(), io_.inputs.end(), is_this)) {
      throw SettingsError(graph_ + " takes no " + name);
    }
  }
  return sizes;
}

void ShapeRules::check_input(const TensorSpec& tensor, const Shape& shape, SymbolSizes& sizes) const {
  bool is_right = tensor.shape.size() == shape.size();
  for (std::size_t i = 0; is_right && i < shape.size(); ++i) {
    const Dim& dim = tensor.shape[i];
    const auto known = sizes.find(dim.symbol);
    if (dim.symbol.empty()) is_right = dim.size == shape[i];
    if (!dim.symbol.empty() && known != sizes.end()) is_right = known->second == shape[i];
  }
  if (!is_right) {
    throw SettingsError(graph_ + ": " + tensor.name + " must be " + shown(tensor, sizes) + ", got " +
                        describe(shape));
  }
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (!tensor.shape[i].symbol.empty()) sizes.insert_or_assign(tensor.shape[i].symbol, shape[i]);
  }
  const auto profile = profiles_.find(tensor.name);
  if (profile == profiles_.end()) return;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (profile->second.min[i] <= shape[i] && shape[i] <= profile->second.max[i]) continue;
    throw SettingsError(graph_ + ": " + tensor.name + " has shape " + describe(shape) +
                        ", the engine takes " + describe(profile->second.min) + " to " +
                        describe(profile->second.max) + "; for others, build the engines again: " + command_);
  }
}

Shapes ShapeRules::output_shapes(const SymbolSizes& sizes) const {
  Shapes shapes;
  for (const TensorSpec& tensor : io_.outputs) {
    Shape shape;
    for (const Dim& dim : tensor.shape) shape.push_back(value_of(dim, sizes, sizes));
    shapes.emplace(tensor.name, std::move(shape));
  }
  return shapes;
}

std::size_t ShapeRules::largest(const TensorSpec& tensor) const {
  SymbolSizes low, high;
  for (const TensorSpec& input : io_.inputs) {
    const auto profile = profiles_.find(input.name);
    if (profile == profiles_.end()) continue;
    for (std::size_t i = 0; i < input.shape.size(); ++i) {
      const std::string& symbol = input.shape[i].symbol;
      if (symbol.empty()) continue;
      const std::int64_t least = profile->second.min[i], most = profile->second.max[i];
      low[symbol] = low.contains(symbol) ? std::max(low[symbol], least) : least;
      high[symbol] = high.contains(symbol) ? std::min(high[symbol], most) : most;
    }
  }
  Shape shape;
  try {
    for (const Dim& dim : tensor.shape) shape.push_back(value_of(dim, high, low));
  } catch (const std::out_of_range&) {
    throw BundleError("the manifest has no range for a size of " + graph_ + "'s " + tensor.name + ", " +
                      shown(tensor) + "; build the engines again: " + command_);
  }
  return bytes_of(tensor.dtype, shape);
}

std::int64_t value_of(const Dim& dim, const SymbolSizes& plus, const SymbolSizes& minus) {
  if (dim.symbol.empty()) return dim.size;
  std::int64_t value = 0;
  bool is_minus = false;
  // Symbols with " + " or " - " between, as the manifest's reader made sure.
  for (std::size_t first = 0; first < dim.symbol.size();) {
    const std::size_t end = std::min(dim.symbol.find(' ', first), dim.symbol.size());
    const std::string term = dim.symbol.substr(first, end - first);
    if (term == "-" || term == "+") {
      is_minus = term == "-";
    } else {
      value += is_minus ? -minus.at(term) : plus.at(term);
    }
    first = end + 1;
  }
  return value;
}

}  // namespace star
