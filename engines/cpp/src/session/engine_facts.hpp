// What the manifest says about a bundle's engines, and what a machine needs to run them. Nothing here needs a
// GPU or TensorRT: an engine belongs to one version and to the GPUs that it was built for, and both are
// compared before anything is deserialised.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bundle/bundle.hpp"
#include "session/engine_shapes.hpp"

namespace star {

inline constexpr std::string_view kTensorRT = "tensorrt", kTensorRTRtx = "tensorrt-rtx";

// Engines for KV caches of one size: by graph, the profiles of its dynamic inputs and its file in the bundle.
struct EngineFiles {
  std::map<std::string, Profiles, std::less<>> profiles;
  std::map<std::string, std::string, std::less<>> files;
};

// One backend's engines as the manifest lists them.
struct EngineFacts {
  std::string backend;
  std::string version;               // of the library that built them
  std::vector<std::string> targets;  // GPUs they run on: `sm89`, ..., or `sm80+`
  std::string plugins;               // `aot`, `library` or `none`
  bool version_compatible = false;   // whether newer versions of the same major number run them too
  bool weight_streaming = false;     // whether weights may stay in host memory
  std::map<std::string, std::string> weights_files;  // SHA-256 by path; none where weights are constants
  // By the capacities of the KV caches that they take, the smallest first; the last, of the bundle's own
  // capacities, are the ones with the vision graph.
  std::vector<std::pair<std::vector<std::int64_t>, EngineFiles>> by_capacities;

  // Sequences that one decode step may have.
  std::int64_t max_batch() const;
};

// What to type when engines are missing or do not fit.
std::string rebuild_command(const Bundle& bundle, std::string_view backend);

// A bundle's engines for one backend; throws BundleError if it has none, the manifest's entry is damaged, or
// the weights are not those that they were built with.
EngineFacts read_facts(const Bundle& bundle, std::string_view backend);

// Throws BundleError with both versions or GPUs and the rebuild command if this machine cannot run the
// engines.
void check_runnable(const Bundle& bundle, const EngineFacts& facts, const std::string& version,
                    std::pair<int, int> capability);

}  // namespace star
