// The bundle: a folder that holds everything a model needs to run.
#pragma once

#include <filesystem>
#include <string_view>
#include <vector>

#include "bundle/manifest.hpp"

namespace star {

// An opened bundle: its folder and its manifest.
struct Bundle {
  std::filesystem::path folder;
  Manifest manifest;

  const ExportSpec& spec() const { return manifest.spec; }
  const Contract& contract() const { return manifest.contract; }
  // The file called so in the manifest.
  std::filesystem::path path(std::string_view name) const { return folder / name; }
  // The ONNX file of `vision`, `prefill` or `decode`.
  std::filesystem::path graph_path(std::string_view graph) const;
  // The files that hold the graphs' weights.
  std::vector<std::filesystem::path> weights() const;
};

// Reads a bundle's manifest and checks its files. With `verify` every file is hashed; without, those over
// 64 MiB (the weights) are only checked for their size, so that loading stays quick.
// Throws BundleError if it is no bundle, of another version, unsafe, incomplete or changed.
Bundle open_bundle(const std::filesystem::path& folder, bool verify = false);

}  // namespace star
