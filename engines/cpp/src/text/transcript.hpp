// An answer while its tokens come: its text, and when it is done.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.hpp"

namespace star {

// Raises SettingsError if there are too many stop strings, or one is empty or too long.
void check_stop(std::span<const std::string> stop);

// The text of tokens as they come, in pieces that add up to the text of all of them at once.
//
// A decoder may change the end of a text when more follows: a character of which bytes are missing, and every
// character of a run of byte tokens (<0xE7>), which is valid or not as a whole. Such an end is held back. All
// before it is final, so that a window over the last tokens is enough.
class TextStream {
 public:
  explicit TextStream(Tokenizer tokenizer) : tokenizer_(std::move(tokenizer)) {}

  // Append a token; the text that is final now and was not before, often empty.
  std::string push(std::int64_t token);

  // The rest of the text, when no more tokens come.
  std::string finish() const;

 private:
  Tokenizer tokenizer_;
  std::vector<std::int64_t> window_;
  std::size_t given_ = 0;  // characters of the window's text that were handed out
};

// Token ids in, pieces of text out. A stop string, and all that follows it, is no part of the text: what may
// become one is held back until it is known not to.
class Transcript {
 public:
  enum class Finish { kStop, kLength };  // after an end token or a stop string; at the limit

  Transcript(Tokenizer tokenizer, std::vector<std::int64_t> eos_token_ids, std::size_t max_new_tokens,
             std::vector<std::string> stop = {});

  // Append a token; the text that is certain now and was not before, often empty.
  std::string push(std::int64_t token);

  // The rest of the text: what was held back, a character that never became complete.
  std::string finish();

  const std::vector<std::int64_t>& token_ids() const { return token_ids_; }
  const std::string& text() const { return text_; }  // all so far; after finish(), the answer
  std::optional<Finish> finish_reason() const { return finish_reason_; }

 private:
  bool cut();
  std::size_t undecided() const;
  std::string give(std::size_t end);

  TextStream stream_;
  std::vector<std::int64_t> eos_;
  std::size_t limit_;
  std::vector<std::string> stop_;
  bool stopped_ = false;  // by a stop string
  std::size_t given_ = 0;  // bytes of the text that were handed out
  std::vector<std::int64_t> token_ids_;
  std::string text_;
  std::optional<Finish> finish_reason_;
};

}  // namespace star
