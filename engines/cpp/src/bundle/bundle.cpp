#include "bundle/bundle.hpp"

#include <algorithm>
#include <cctype>
#include <set>

#include "bundle/sha256.hpp"
#include "errors.hpp"
#include "memory.hpp"

namespace star {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kManifest = "manifest.json";
// Files above this size are hashed where that is asked for only.
constexpr std::int64_t kHashAtLoadBytes = 64 << 20;
constexpr std::size_t kLargestManifest = 64 << 20;

Json read_values(const fs::path& folder) {
  const fs::path path = folder / kManifest;
  std::error_code failure;
  if (!fs::is_regular_file(path, failure)) {
    throw BundleError(folder.string() + " is not a bundle: it has no manifest.json; make one with " +
                      "`star-export build`");
  }
  Json values;
  try {
    values = parse_json(read_file(path, kLargestManifest));
  } catch (const BundleError& error) {
    throw BundleError(path.string() + " is not a bundle manifest (" + error.what() +
                      "); build the bundle again");
  }
  if (!values.is_object() || !values.contains("format_version")) {
    throw BundleError(path.string() + " is not a bundle manifest (it has no format_version); give a folder " +
                      "made by `star-export build`");
  }
  return values;
}

// Whether a path is relative and has no `..`, in the forms of POSIX and Windows.
bool is_plain(std::string name) {
  std::replace(name.begin(), name.end(), '\\', '/');
  const bool is_drive =
      name.size() > 1 && name[1] == ':' && std::isalpha(static_cast<unsigned char>(name[0])) != 0;
  if (name.starts_with('/') || is_drive || name.find('\0') != std::string::npos) return false;
  for (std::size_t first = 0; first <= name.size();) {
    const std::size_t end = std::min(name.find('/', first), name.size());
    if (name.substr(first, end - first) == "..") return false;
    first = end + 1;
  }
  return true;
}

// Whether a path with its links followed stays in the folder.
bool is_inside(const fs::path& path, const fs::path& folder) {
  std::error_code failure;
  const fs::path whole = fs::weakly_canonical(path, failure);
  if (failure) return false;
  const fs::path root = fs::weakly_canonical(folder, failure);
  if (failure) return false;
  return std::mismatch(root.begin(), root.end(), whole.begin(), whole.end()).first == root.end();
}

void check_file(const fs::path& folder, const BundleFile& file, bool verify) {
  const fs::path path = folder / file.path;
  if (!is_plain(file.path) || !is_inside(path, folder)) {
    throw BundleError((folder / kManifest).string() + " names " + file.path +
                      ", which leaves the bundle; do not use it");
  }
  std::error_code failure;
  const auto size = fs::is_regular_file(path, failure) ? fs::file_size(path, failure) : 0;
  if (failure || !fs::is_regular_file(path, failure)) {
    throw BundleError(folder.string() + " lacks " + file.path +
                      "; copy the whole bundle again or rebuild it");
  }
  if (size != static_cast<std::uintmax_t>(file.bytes)) {
    throw BundleError(path.string() + " has " + std::to_string(size) + " bytes, the manifest says " +
                      std::to_string(file.bytes) + "; copy or build it again");
  }
  if ((verify || file.bytes <= kHashAtLoadBytes) && sha256_of(path) != file.sha256) {
    throw BundleError(path.string() + " differs from the SHA-256 in the manifest; copy or build it again");
  }
}

void check_listed(const fs::path& folder, const Manifest& manifest) {
  std::set<std::string> missing{"tokenizer.json", "preprocessor.json"};
  for (const std::string_view graph : kGraphs) missing.insert("graphs/" + std::string(graph) + ".onnx");
  for (const BundleFile& file : manifest.files) missing.erase(file.path);
  if (missing.empty()) return;
  std::string names;
  for (const std::string& name : missing) names += (names.empty() ? "" : ", ") + name;
  throw BundleError((folder / kManifest).string() + " does not list " + names + "; build again");
}

}  // namespace

fs::path Bundle::graph_path(std::string_view graph) const {
  return folder / "graphs" / (std::string(graph) + ".onnx");
}

std::vector<fs::path> Bundle::weights() const {
  std::vector<fs::path> paths;
  for (const BundleFile& file : manifest.files) {
    if (file.path.ends_with(".safetensors")) paths.push_back(path(file.path));
  }
  return paths;
}

Bundle open_bundle(const fs::path& folder, bool verify) {
  const Json values = read_values(folder);
  if (const std::string why = wrong_version(values); !why.empty()) {
    throw BundleError(folder.string() + " " + why);
  }
  Bundle bundle{folder, {}};
  try {
    bundle.manifest = within_memory<BundleError>("it", "free some", [&] { return read_manifest(values); });
  } catch (const BundleError& error) {
    throw BundleError((folder / kManifest).string() + " is damaged: " + error.marked() +
                      "; build the bundle again");
  }
  for (const BundleFile& file : bundle.manifest.files) check_file(folder, file, verify);
  check_listed(folder, bundle.manifest);
  return bundle;
}

}  // namespace star
