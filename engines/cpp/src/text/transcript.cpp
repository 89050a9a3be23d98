#include "text/transcript.hpp"

#include <algorithm>
#include <utility>

#include "errors.hpp"
#include "text/utf8.hpp"

namespace star {
namespace {

constexpr std::size_t kMostStops = 16, kLongestStop = 256;
constexpr std::string_view kIncomplete = "\uFFFD";

// Decoded again with every new token: what a decoder does to text depends on the few tokens before it.
constexpr std::size_t kContext = 4;

// Characters of a text from one to before another, as Python's slices.
std::string slice(std::string_view text, std::size_t first, std::size_t end) {
  const std::size_t begin = utf8::offset(text, first), stop = utf8::offset(text, end);
  return begin < stop ? std::string(text.substr(begin, stop - begin)) : "";
}

std::string shown(std::span<const std::string> texts) {
  std::string list;
  for (const std::string& text : texts) {
    list += (list.empty() ? "" : ", ") + utf8::repr(utf8::lossy(text));
  }
  return "[" + list + "]";
}

}  // namespace

void check_stop(std::span<const std::string> stop) {
  const auto fits = [](const std::string& text) {
    return !text.empty() && utf8::is_valid(text) && utf8::length(text) <= kLongestStop;
  };
  if (stop.size() > kMostStops || !std::all_of(stop.begin(), stop.end(), fits)) {
    throw SettingsError("stop takes at most " + std::to_string(kMostStops) + " strings of 1 to " +
                        std::to_string(kLongestStop) + " characters, got " + shown(stop));
  }
}

std::string TextStream::push(std::int64_t token) {
  const auto name = tokenizer_.id_to_token(token);
  if (!name || tokenizer_.is_special(token)) return "";
  window_.push_back(token);
  if (name->starts_with("<0x") && name->ends_with('>')) return "";
  const std::string text = tokenizer_.decode(window_);
  const std::size_t open_end = text.ends_with(kIncomplete) ? 1 : 0;  // may become a character with the next
  std::string piece = slice(text, given_, utf8::length(text) - open_end);
  if (window_.size() > kContext) window_.erase(window_.begin(), window_.end() - kContext);
  const std::size_t left = utf8::length(tokenizer_.decode(window_));
  given_ = left - std::min(left, open_end);
  return piece;
}

std::string TextStream::finish() const {
  const std::string text = tokenizer_.decode(window_);
  return slice(text, given_, utf8::length(text));
}

Transcript::Transcript(Tokenizer tokenizer, std::vector<std::int64_t> eos_token_ids,
                       std::size_t max_new_tokens, std::vector<std::string> stop)
    : stream_(std::move(tokenizer)),
      eos_(std::move(eos_token_ids)),
      limit_(max_new_tokens),
      stop_(std::move(stop)) {}

std::string Transcript::push(std::int64_t token) {
  token_ids_.push_back(token);
  text_ += stream_.push(token);
  if (cut() || std::find(eos_.begin(), eos_.end(), token) != eos_.end()) {
    finish_reason_ = Finish::kStop;
  } else if (token_ids_.size() == limit_) {
    finish_reason_ = Finish::kLength;
  }
  return give(text_.size() - undecided());
}

std::string Transcript::finish() {
  if (!stopped_) {
    text_ += stream_.finish();
    cut();
  }
  return give(text_.size());
}

// End the text at the stop string that is complete first; none begins in what was handed out.
bool Transcript::cut() {
  std::optional<std::pair<std::size_t, std::size_t>> first;  // where it ends and begins
  for (const std::string& stop : stop_) {
    const std::size_t at = text_.find(stop, given_);
    if (at == text_.npos) continue;
    const std::pair found(at + stop.size(), at);
    first = first ? std::min(*first, found) : found;
  }
  if (first) {
    text_.resize(first->second);
    stopped_ = true;
  }
  return stopped_;
}

// Bytes at the end that may begin a stop string.
std::size_t Transcript::undecided() const {
  std::size_t longest = 0;
  if (stopped_) return longest;
  for (const std::string_view stop : stop_) {
    for (std::size_t size = longest + 1; size < stop.size(); ++size) {
      if (text_.ends_with(stop.substr(0, size))) longest = size;
    }
  }
  return longest;
}

std::string Transcript::give(std::size_t end) {
  const std::string piece = given_ < end ? text_.substr(given_, end - given_) : "";
  given_ = std::max(given_, end);
  return piece;
}

}  // namespace star
