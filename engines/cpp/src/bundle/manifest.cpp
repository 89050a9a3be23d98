#include "bundle/manifest.hpp"

#include <algorithm>
#include <limits>
#include <set>
#include <string_view>

#include "bundle/read_spec.hpp"
#include "errors.hpp"

namespace star {
namespace {

using std::to_string;

constexpr std::string_view kTieRule =
    "equal scores keep the lower index; NaN ranks last; kept indices ascend";
constexpr std::int64_t kCount = std::int64_t{1} << 31;

void agree(const std::string& path, const std::string& expected, const std::string& found) {
  if (expected == found) return;
  throw BundleError(path + ": expected " + expected + ", found " + shortened(found));
}

// Refuses a name too few, too many or twice.
void check_names(const std::string& path, std::vector<std::string> needed, std::vector<std::string> found) {
  std::sort(needed.begin(), needed.end());
  std::sort(found.begin(), found.end());
  std::set<std::string> names(needed.begin(), needed.end());
  names.insert(found.begin(), found.end());
  for (const std::string& name : names) {
    const auto wanted = std::count(needed.begin(), needed.end(), name);
    const auto there = std::count(found.begin(), found.end(), name);
    agree(path, to_string(wanted) + " " + name, to_string(there) + " " + name);
  }
}

template <typename Map>
std::vector<std::string> keys(const Map& map) {
  std::vector<std::string> names;
  names.reserve(map.size());
  for (const auto& [name, value] : map) names.push_back(name);
  return names;
}

bool is_symbol(const std::string& text) {
  // An upper-case letter and up to four digits, or several of these with " + " or " - " between.
  if (text.size() > 32) return false;
  for (std::size_t i = 0;;) {
    if (i >= text.size() || text[i] < 'A' || text[i] > 'Z') return false;
    const std::size_t first = ++i;
    while (i < text.size() && text[i] >= '0' && text[i] <= '9') ++i;
    if (i - first > 4) return false;
    if (i == text.size()) return true;
    if (text.compare(i, 3, " + ") != 0 && text.compare(i, 3, " - ") != 0) return false;
    i += 3;
  }
}

Dim read_dim(const Value& value) {
  if (!value.json().is_string()) return value.integer(1, kCount);
  if (!is_symbol(value.text())) value.refuse("expected str matching a sum of symbols");
  return value.text();
}

std::vector<TensorSpec> read_tensors(const Value& value) {
  std::vector<TensorSpec> tensors;
  for (const Value& item : value.items()) {
    Object object(item);
    TensorSpec tensor;
    tensor.name = object.get("name").text();
    const Value dtype = object.get("dtype");
    const auto found = dtype_named(dtype.text());
    if (!found) dtype.refuse("expected an element type");
    tensor.dtype = *found;
    for (const Value& dim : object.get("shape").items()) tensor.shape.push_back(read_dim(dim));
    if (const auto role = object.find("role"); role && !role->is_null()) {
      if (role->text() != "length") role->refuse("invalid enum value");
      tensor.is_length = true;
    }
    object.done();
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

GraphSpec read_graph(const Value& value) {
  Object object(value);
  GraphSpec graph;
  graph.inputs = read_tensors(object.get("inputs"));
  graph.outputs = read_tensors(object.get("outputs"));
  if (const auto aliases = object.find("aliases")) {
    for (const auto& [present, past] : aliases->members()) graph.aliases[present] = past.text();
  }
  object.done();
  return graph;
}

std::optional<std::int64_t> read_count_or_null(const std::optional<Value>& value) {
  if (!value || value->is_null()) return std::nullopt;
  return value->integer(1, kCount);
}

SizeRange read_size(const Value& value) {
  Object object(value);
  SizeRange size;
  size.min = object.get("min").integer(1, kCount);
  size.max = read_count_or_null(object.get("max"));
  size.default_size = read_count_or_null(object.find("default"));
  object.done();
  return size;
}

BundleFile read_bundle_file(const Value& value) {
  Object object(value);
  BundleFile file;
  const Value path = object.get("path"), sha256 = object.get("sha256");
  file.path = path.text();
  if (file.path.empty() || file.path.size() > 255) path.refuse("expected str of length 1 to 255");
  file.bytes = object.get("bytes").integer(0, std::numeric_limits<std::int64_t>::max());
  file.sha256 = sha256.text();
  const bool is_hex = file.sha256.find_first_not_of("0123456789abcdef") == std::string::npos;
  if (file.sha256.size() != 64 || !is_hex) sha256.refuse("expected str matching regex '^[0-9a-f]{64}$'");
  object.done();
  return file;
}

// Refuses groups that leave out layers, overlap, end elsewhere than the stages, or have another room.
void check_groups(const Value& value, const ExportSpec& spec) {
  const std::vector<LayerGroup> needed = spec.groups();
  const std::vector<std::string> lengths = lengths_names(spec);
  const std::vector<Value> found = value.items();
  if (found.size() != needed.size()) {
    throw BundleError("groups: expected " + to_string(needed.size()) + " groups, found " +
                      to_string(found.size()));
  }
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  for (std::size_t i = 0; i < needed.size(); ++i) {
    Object object(found[i]);
    const auto check = [&](const char* key, std::int64_t expected) {
      const Value number = object.get(key);
      agree(number.path(), to_string(expected), to_string(number.integer(-kMost, kMost)));
    };
    check("first", needed[i].first);
    check("last", needed[i].last);
    check("capacity", needed[i].capacity);
    agree(object.get("lengths").path(), lengths[i], object.get("lengths").text());
    object.done();
  }
}

void check_tensors(const std::string& path, const std::vector<TensorSpec>& needed,
                   const std::vector<TensorSpec>& found) {
  std::map<std::string, std::string> expected, there;
  std::vector<std::string> names, found_names;
  for (const TensorSpec& tensor : needed) expected[tensor.name] = tensor.describe();
  for (const TensorSpec& tensor : found) {
    there[tensor.name] = tensor.describe();
    found_names.push_back(tensor.name);
  }
  check_names(path, keys(expected), found_names);
  for (const auto& [name, text] : expected) agree(path + "." + name, text, there[name]);
}

// Refuses graphs that lack a tensor which the steps feed or read, or have another.
void check_contract(const Contract& found, const ExportSpec& spec) {
  const Contract needed = contract_of(spec);
  check_names("contract", keys(needed), keys(found));
  for (const auto& [name, graph] : needed) {
    const std::string path = "contract." + name;
    const GraphSpec& there = found.at(name);
    check_tensors(path + ".inputs", graph.inputs, there.inputs);
    check_tensors(path + ".outputs", graph.outputs, there.outputs);
    check_names(path + ".aliases", keys(graph.aliases), keys(there.aliases));
    for (const auto& [output, past] : graph.aliases) {
      agree(path + ".aliases." + output, past, there.aliases.at(output));
    }
  }
}

std::string spelled(const std::optional<std::int64_t>& size) { return size ? to_string(*size) : "None"; }

// Refuses empty ranges, budgets that are not the stages', and prompts that the caches have no room for.
void check_sizes(const std::map<std::string, SizeRange>& sizes, const ExportSpec& spec) {
  const std::map<std::string, SizeRange> needed = size_ranges(spec);
  check_names("sizes", keys(needed), keys(sizes));
  for (const auto& [name, size] : sizes) {
    const std::int64_t typical = size.default_size.value_or(size.min);
    if (!(size.min <= typical && typical <= size.max.value_or(typical))) {
      throw BundleError("sizes." + name + ": expected min <= default <= max, found " + to_string(size.min) +
                        ", " + to_string(typical) + ", " + spelled(size.max));
    }
  }
  for (const auto& [name, size] : needed) {
    const SizeRange& found = sizes.at(name);
    agree("sizes." + name + ".default", spelled(size.default_size), spelled(found.default_size));
    if (size.max && (!found.max || *found.max > *size.max)) {
      throw BundleError("sizes." + name + ".max: expected at most " + to_string(*size.max) + ", found " +
                        spelled(found.max));
    }
  }
}

void read_source(const Value& value) {
  Object object(value);
  object.get("model").text();
  if (const Value revision = object.get("revision"); !revision.is_null()) revision.text();
  if (const auto hashes = object.find("sha256")) {
    for (const auto& [file, hash] : hashes->members()) hash.text();
  }
  object.done();
}

ExportSpec read_checked_spec(const Value& value) {
  ExportSpec spec = read_spec(value);
  try {
    check_spec(spec);
  } catch (const SettingsError& error) {
    throw BundleError("spec: " + error.marked());
  }
  return spec;
}

}  // namespace

std::string wrong_version(const Json& values) {
  const std::string own = to_string(kFormatVersion);
  const Json& version = values.at("format_version");
  const std::string found = shortened(version.dump(-1, ' ', false, Json::error_handler_t::replace));
  if (!version.is_number_integer() || version > kFormatVersion || version < 1) {
    return "has bundle format " + found + ", this runtime reads " + own +
           "; upgrade star-export or build the bundle again";
  }
  if (version < kFormatVersion) {
    return "has bundle format " + found + ", this runtime reads " + own +
           "; build the bundle again, or run it from Python, which reads older formats too";
  }
  const auto contract = values.find("contract_version");
  if (contract != values.end() && contract->is_number_integer() && *contract != kContractVersion) {
    return "has graphs of contract " + contract->dump() + ", this runtime runs contract " +
           to_string(kContractVersion) + "; " +
           (*contract > kContractVersion ? "upgrade star-export" : "build the bundle again");
  }
  return "";
}

Manifest read_manifest(const Json& values) {
  Object object(Value(values, ""));
  Manifest manifest;
  object.get("format_version").integer(kFormatVersion, kFormatVersion);
  object.get("contract_version").integer(kContractVersion, kContractVersion);
  read_source(object.get("source"));
  for (const auto& [tool, version] : object.get("versions").members()) version.text();
  const Value rule = object.get("tie_rule"), groups = object.get("groups");
  manifest.spec = read_checked_spec(object.get("spec"));
  for (const auto& [name, graph] : object.get("contract").members()) {
    manifest.contract[name] = read_graph(graph);
  }
  for (const auto& [name, size] : object.get("sizes").members()) manifest.sizes[name] = read_size(size);
  manifest.engines = Json::object();
  if (const auto engines = object.find("engines")) {
    for (const auto& [backend, facts] : engines->members()) facts.members();
    manifest.engines = engines->json();
  }
  for (const Value& file : object.get("files").items()) manifest.files.push_back(read_bundle_file(file));
  object.done();
  check_groups(groups, manifest.spec);
  check_contract(manifest.contract, manifest.spec);
  check_sizes(manifest.sizes, manifest.spec);
  agree("tie_rule", std::string(kTieRule), rule.text());
  return manifest;
}

}  // namespace star
