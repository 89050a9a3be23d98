// What may be asked of a bundle; every default is the bundle's own.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "star/export.h"

namespace star {

// How a bundle is opened.
struct Options {
  // Or "tensorrt" or "tensorrt-rtx", where the library was built with that one's headers: on the first GPU,
  // with libraries that STAR_TENSORRT, STAR_CUDART and STAR_NVRTC name, or that the system's loader finds.
  std::string backend = "onnxruntime";
  // The ONNX Runtime library to load, 1.24 or newer. By default what the environment variable
  // STAR_ONNXRUNTIME names, or what the system's loader finds. A process has one.
  std::filesystem::path onnxruntime;
  std::filesystem::path plugin_library;  // of TensorRT engines that were built with one
  std::optional<int> threads;            // of the CPU; all cores by default
  bool verify = false;                   // hash every file first, the weights too
};

// Visual tokens of all pictures after the last stage, or a budget for every stage.
using Keep = std::variant<std::int64_t, std::vector<std::int64_t>>;

// How the next token is chosen.
struct Sampling {
  double temperature = 0.0;  // 0 is greedy; above, logits are divided by it
  double top_p = 1.0;        // sample from the smallest set of tokens that has this probability
  std::optional<std::uint64_t> seed = std::nullopt;  // none: a fresh one every time

  // Throws an Error of kind kSettings if a value is out of range.
  STAR_API void check() const;
};

// How an answer is generated.
struct Settings {
  std::optional<Keep> keep;
  std::optional<std::int64_t> max_new_tokens;  // what the caches hold by default
  Sampling sampling;
  std::vector<std::string> stop;        // strings that end the answer and are no part of it
  std::vector<std::string> end_tokens;  // tokens that end it, besides the bundle's own, such as <|eot_id|>
};

}  // namespace star
