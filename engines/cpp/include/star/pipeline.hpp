// A bundle made by `star-export build`: pictures and a prompt in, text out.
//
//   star::Pipeline pipeline = star::Pipeline::open("bundle");
//   const star::Image pictures[] = {"dog.png"};
//   std::cout << pipeline.generate(pictures, "What is this?").text;
//
// Whatever cannot be done is a star::Error that says what was expected, what was found and what to do.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "star/error.hpp"
#include "star/export.h"
#include "star/settings.hpp"

namespace star {

// A picture: the path of a JPEG or PNG file, or the bytes of one.
using Image = std::variant<std::filesystem::path, std::span<const std::uint8_t>>;

// Pieces of an answer's text as they come; together they are the whole.
using OnText = std::function<void(std::string_view piece)>;

// Milliseconds of one generation.
struct Timings {
  double vision = 0.0;         // the pictures' features
  double prefill = 0.0;        // from there to the first token
  std::vector<double> decode;  // each further token
  double total = 0.0;          // all of it, with streaming
};

// A finished generation.
struct Result {
  std::string text;                     // the answer without special tokens
  std::vector<std::int64_t> token_ids;  // its tokens, an end token included when there was one
  std::string finish_reason;            // "stop" after an end token or a stop string, "length" at the limit
  std::vector<std::int64_t> stage1_indices;  // visual tokens that stage 1 kept, numbered across the pictures
  std::vector<std::int64_t> stage2_indices;  // stage-1 tokens that stage 2 kept
  std::int64_t prompt_tokens = 0;            // before stage 2, visual tokens included
  Timings timings_ms;
};

class Pipeline {
 public:
  // Reads a bundle and loads its graphs. Throws an Error of kind kBundle if it is missing, damaged, unsafe or
  // too new, kSettings for an unknown backend, kPlatform if this machine lacks what the backend needs.
  STAR_API static Pipeline open(const std::filesystem::path& folder, const Options& options = {});

  STAR_API Pipeline(Pipeline&&) noexcept;
  STAR_API Pipeline& operator=(Pipeline&&) noexcept;
  STAR_API ~Pipeline();

  // Answers a question about pictures. The prompt is a question, or, with <image> for each picture, the whole
  // prompt as it is.
  //
  // Any thread may ask; one answer is generated at a time, the others wait. `stop` ends it before its next
  // token, with an Error of kind kCancelled. What `on_text` throws ends it too, and passes on to the caller.
  //
  // Throws an Error of kind kInput if a picture or the prompt cannot be used, kSettings if a number is out of
  // range or an end token is unknown, kNonFinite if the model's logits are NaN or infinite; the next is not
  // affected.
  STAR_API Result generate(std::span<const Image> images, std::string_view prompt,
                           const Settings& settings = {}, const OnText& on_text = {},
                           const std::stop_token& stop = {});

 private:
  struct Parts;
  explicit Pipeline(std::unique_ptr<Parts> parts);

  std::unique_ptr<Parts> parts_;
};

}  // namespace star
