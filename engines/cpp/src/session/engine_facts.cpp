#include "session/engine_facts.hpp"

#include <algorithm>
#include <charconv>
#include <set>

#include "errors.hpp"

namespace star {
namespace {

constexpr std::int64_t kMost = std::int64_t{1} << 31;
// A target of `--hardware-compatible` engines: sm80 and everything newer.
constexpr std::string_view kAmperePlus = "sm80+";
// GPUs that TensorRT-RTX builds for without having one.
constexpr std::array<std::string_view, 5> kRtxTargets{"sm80", "sm86", "sm89", "sm120", "sm121"};

// Up to nine digits each, so that no number overflows.
std::vector<std::int64_t> numbers_of(std::string_view version) {
  std::vector<std::int64_t> numbers;
  for (std::size_t first = 0; first <= version.size();) {
    const std::size_t end = std::min(version.find('.', first), version.size());
    std::int64_t number = -1;
    const auto [rest, failure] = std::from_chars(version.data() + first, version.data() + end, number);
    if (failure != std::errc() || rest != version.data() + end || end - first > 9 || number < 0) return {};
    numbers.push_back(number);
    first = end + 1;
  }
  return numbers;
}

Shape read_shape(const Value& value) {
  Shape shape;
  for (const Value& size : value.items()) shape.push_back(size.integer(0, kMost));
  return shape;
}

EngineFiles read_files(Object& object) {
  EngineFiles engines;
  for (const auto& [graph, inputs] : object.get("profiles").members()) {
    Profiles& profiles = engines.profiles[graph];
    for (const auto& [name, corners] : inputs.members()) {
      Object profile(corners);
      profiles[name] = {read_shape(profile.get("min")), read_shape(profile.get("opt")),
                        read_shape(profile.get("max"))};
      profile.done();
    }
  }
  for (const auto& [graph, path] : object.get("files").members()) engines.files[graph] = path.text();
  return engines;
}

std::vector<std::int64_t> capacities_with(const ExportSpec& spec, std::int64_t room) {
  std::vector<std::int64_t> capacities = spec.capacities();
  for (std::int64_t& capacity : capacities) capacity -= spec.room() - room;
  return capacities;
}

void read_smaller(Object& object, const ExportSpec& spec, EngineFacts& facts) {
  const auto smaller = object.find("smaller");
  std::int64_t before = 0;
  for (const Value& item : smaller ? smaller->items() : std::vector<Value>{}) {
    Object engines(item);
    const std::int64_t room = engines.get("room").integer(1, kMost);
    if (room <= before || room >= spec.room()) throw BundleError("its smaller engines are not in order");
    facts.by_capacities.emplace_back(capacities_with(spec, room), read_files(engines));
    engines.done();
    before = room;
  }
}

EngineFacts read_entry(const Value& entry, const ExportSpec& spec) {
  Object object(entry);
  EngineFacts facts;
  facts.backend = object.get("backend").text();
  const Value version = object.get("version");
  facts.version = version.text();
  if (numbers_of(facts.version).empty()) version.refuse("expected numbers with dots between");
  for (const Value& target : object.get("targets").items()) facts.targets.push_back(target.text());
  const Value plugins = object.get("plugins");
  facts.plugins = plugins.text();
  if (facts.plugins != "aot" && facts.plugins != "library" && facts.plugins != "none") {
    plugins.refuse("expected aot, library or none");
  }
  facts.version_compatible = object.get("version_compatible").boolean();
  facts.weight_streaming = object.get("weight_streaming").boolean();
  if (const Value driver = object.get("driver"); !driver.is_null()) driver.text();
  if (const auto files = object.find("weights_files")) {
    for (const auto& [name, sha256] : files->members()) facts.weights_files[name] = sha256.text();
  }
  read_smaller(object, spec, facts);
  facts.by_capacities.emplace_back(spec.capacities(), read_files(object));
  object.done();
  return facts;
}

bool is_dynamic(const TensorSpec& tensor) {
  return std::any_of(tensor.shape.begin(), tensor.shape.end(),
                     [](const Dim& dim) { return !dim.symbol.empty(); });
}

bool fits(const Profile& profile, const TensorSpec& tensor, const SymbolSizes& sizes) {
  const std::size_t rank = tensor.shape.size();
  if (profile.min.size() != rank || profile.opt.size() != rank || profile.max.size() != rank) return false;
  for (std::size_t i = 0; i < rank; ++i) {
    const std::int64_t low = profile.min[i], typical = profile.opt[i], high = profile.max[i];
    if (low > typical || typical > high) return false;
    const auto known = sizes.find(tensor.shape[i].symbol);
    if (known != sizes.end() && (low != known->second || high != known->second)) return false;
  }
  return true;
}

// Whether every dynamic input, and no other, has a range of its rank and of the sizes that are known.
bool profiles_fit(const Profiles& profiles, const GraphSpec& io, const SymbolSizes& sizes) {
  std::size_t dynamic = 0;
  for (const TensorSpec& tensor : io.inputs) {
    if (!is_dynamic(tensor)) continue;
    const auto profile = profiles.find(tensor.name);
    if (profile == profiles.end() || !fits(profile->second, tensor, sizes)) return false;
    ++dynamic;
  }
  return profiles.size() == dynamic;
}

// Throws BundleError with what is wrong if the engines are not there, or not of the bundle's graphs.
void check_engines(const EngineFacts& facts, const Bundle& bundle, std::string_view backend) {
  std::set<std::string> listed;
  for (const BundleFile& file : bundle.manifest.files) listed.insert(file.path);
  const std::vector<std::string> symbols = capacity_symbols(bundle.spec());
  for (const auto& [capacities, engines] : facts.by_capacities) {
    const bool has_vision = &engines == &facts.by_capacities.back().second;
    SymbolSizes sizes;
    for (std::size_t i = 0; i < symbols.size(); ++i) sizes[symbols[i]] = capacities[i];
    std::size_t graphs = 0;
    for (const std::string_view graph : kGraphs) {
      if (graph == kVision && !has_vision) continue;
      ++graphs;
      const auto file = engines.files.find(graph);
      const auto profiles = engines.profiles.find(graph);
      if (facts.backend != backend || file == engines.files.end() || !listed.contains(file->second)) {
        throw BundleError("its files are not those of the bundle");
      }
      if (profiles == engines.profiles.end() ||
          !profiles_fit(profiles->second, bundle.contract().find(graph)->second, sizes)) {
        throw BundleError("its profiles are not those of the bundle's graphs");
      }
    }
    if (engines.files.size() != graphs) throw BundleError("its files are not those of the bundle");
    if (engines.profiles.size() != graphs) {
      throw BundleError("its profiles are not those of the bundle's graphs");
    }
  }
}

// Engines belong to one version; version-compatible ones also to newer ones of its major number.
bool version_fits(const EngineFacts& facts, const std::string& version) {
  std::vector<std::int64_t> built = numbers_of(facts.version), here = numbers_of(version);
  built.resize(std::min<std::size_t>(built.size(), 4));
  here.resize(std::min<std::size_t>(here.size(), 4));
  if (!facts.version_compatible) return built == here;
  return !here.empty() && built.front() == here.front() && here >= built;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

std::string remedy(const Bundle& bundle, const EngineFacts& facts, const std::string& target) {
  const std::string command = rebuild_command(bundle, facts.backend);
  if (facts.backend != kTensorRTRtx) return "build them here: " + command;
  if (std::find(kRtxTargets.begin(), kRtxTargets.end(), target) != kRtxTargets.end()) {
    return "build them again: " + command + " --target " + target;
  }
  return facts.backend + " does not build for it: " + rebuild_command(bundle, kTensorRT);
}

}  // namespace

std::int64_t EngineFacts::max_batch() const {
  std::int64_t most = 0;
  for (const auto& [name, profile] : by_capacities.back().second.profiles.find(kDecode)->second) {
    if (!profile.max.empty()) most = std::max(most, profile.max.front());
  }
  return most;
}

std::string rebuild_command(const Bundle& bundle, std::string_view backend) {
  return "star-export build --from-bundle " + bundle.folder.string() + " --backend " + std::string(backend);
}

EngineFacts read_facts(const Bundle& bundle, std::string_view backend) {
  const std::string command = rebuild_command(bundle, backend), name(backend);
  const Json& engines = bundle.manifest.engines;
  const auto entry = engines.find(name);
  if (entry == engines.end()) {
    throw BundleError(bundle.folder.string() + " has no " + name + " engines; make them: " + command);
  }
  EngineFacts facts;
  try {
    facts = read_entry(Value(*entry, ""), bundle.spec());
    check_engines(facts, bundle, backend);
  } catch (const BundleError& error) {
    throw BundleError(bundle.folder.string() + ": the manifest's " + name + " entry is damaged (" +
                      error.what() + "); run: " + command);
  }
  std::vector<std::string> changed;
  for (const auto& [path, was] : facts.weights_files) {
    // Named, as clang 14 lets no lambda have parts of a pair.
    const auto is_it = [&path = path, &was = was](const BundleFile& file) {
      return file.path == path && file.sha256 == was;
    };
    const std::vector<BundleFile>& files = bundle.manifest.files;
    if (std::none_of(files.begin(), files.end(), is_it)) changed.push_back(path);
  }
  if (changed.empty()) return facts;
  throw BundleError(bundle.folder.string() + ": the " + name + " engines take their weights from " +
                    joined(changed) + ", which is not what they were built with; run: " + command);
}

void check_runnable(const Bundle& bundle, const EngineFacts& facts, const std::string& version,
                    std::pair<int, int> capability) {
  if (!version_fits(facts, version)) {
    throw BundleError(bundle.folder.string() + ": the engines were built by " + facts.backend + " " +
                      facts.version + ", this machine has " + version +
                      "; build them again: " + rebuild_command(bundle, facts.backend));
  }
  std::string target = "sm";
  target += std::to_string(capability.first) + std::to_string(capability.second);
  for (const std::string& built : facts.targets) {
    if (built == target || (built == kAmperePlus && capability >= std::pair(8, 0))) return;
  }
  throw BundleError(bundle.folder.string() + ": the " + facts.backend + " engines were built for " +
                    joined(facts.targets) + ", this GPU is " + target + "; " + remedy(bundle, facts, target));
}

}  // namespace star
