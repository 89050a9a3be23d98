// What `manifest.json` holds; docs/bundle.md explains its keys.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "bundle/contract.hpp"
#include "bundle/json.hpp"
#include "bundle/spec.hpp"

namespace star {

inline constexpr std::int64_t kFormatVersion = 5;

// One file as the manifest lists it.
struct BundleFile {
  std::string path;
  std::int64_t bytes = 0;
  std::string sha256;
};

struct Manifest {
  ExportSpec spec;
  Contract contract;
  std::map<std::string, SizeRange> sizes;
  Json engines;  // by backend, as a backend's session reads it
  std::vector<BundleFile> files;
};

// A sentence about JSON that is a manifest, but of another format or contract; empty if it is of the present.
std::string wrong_version(const Json& values);

// A manifest of the present format, its values of their types and coherent.
// Throws BundleError with the path of a value, what was expected and what was found.
Manifest read_manifest(const Json& values);

}  // namespace star
