// A tokenizer.json of Hugging Face tokenizers: text to token ids and back, as that library does it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace star {

// Immutable: threads may share one.
class Tokenizer {
 public:
  // Raises BundleError if the file cannot be read, is damaged, or has a part that is not supported.
  static Tokenizer open(const std::filesystem::path& path);
  // The same of a file's content; `path` is its name in messages.
  static Tokenizer parse(std::string_view content, const std::string& path);

  // Ids of a text. Raises InputError if it is not valid UTF-8.
  std::vector<std::int64_t> encode(std::string_view text, bool add_special_tokens) const;

  // Text of ids; those that are no token have none.
  std::string decode(std::span<const std::int64_t> ids, bool skip_special_tokens = true) const;

  std::optional<std::int64_t> token_to_id(std::string_view token) const;
  std::optional<std::string> id_to_token(std::int64_t id) const;
  bool is_special(std::int64_t id) const;

 private:
  struct Parts;
  explicit Tokenizer(std::shared_ptr<const Parts> parts) : parts_(std::move(parts)) {}

  std::shared_ptr<const Parts> parts_;
};

}  // namespace star
