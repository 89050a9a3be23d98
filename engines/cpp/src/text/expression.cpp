#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/expression.hpp"

#include <pcre2.h>

#include <array>
#include <cstdio>

#include "errors.hpp"
#include "text/unicode_ranges.hpp"
#include "text/unsupported.hpp"
#include "text/utf8.hpp"

namespace star {
namespace {

// PCRE2's own \s has U+180E too.
constexpr std::string_view kSpaces =
    "\\x{09}-\\x{0D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}"
    "\\x{3000}";

template <std::size_t N>
std::string members(std::string_view property, const utf8::Range (&newer)[N]) {
  std::string written(property);
  for (const auto [first, last] : newer) {
    std::array<char, 40> range{};
    std::snprintf(range.data(), range.size(), "\\x{%X}-\\x{%X}", static_cast<unsigned>(first),
                  static_cast<unsigned>(last));
    written += range.data();
  }
  return written;
}

// Writes an expression of Oniguruma as one of PCRE2 that means the same.
class Translation {
 public:
  explicit Translation(std::string_view pattern) : rest_(pattern) {}

  std::string run() {
    while (!rest_.empty()) {
      if (rest_.front() == '\\') {
        escape();
      } else {
        in_class_ ? class_member() : outside();
      }
    }
    return written_;
  }

 private:
  [[noreturn]] void refuse(std::size_t size) const {
    refuse_part("the syntax " + utf8::repr(rest_.substr(0, size)) + " of an expression",
                "groups, classes of characters, \\s, \\S, \\p{L}, \\p{N}");
  }

  bool take(std::string_view text) {
    if (!rest_.starts_with(text)) return false;
    written_ += text;
    rest_.remove_prefix(text.size());
    return true;
  }

  void copy() {
    const std::size_t size = utf8::at(rest_, 0).size;
    written_ += rest_.substr(0, size);
    rest_.remove_prefix(size);
  }

  void class_member() {
    if (rest_.front() == '[' || rest_.starts_with("&&")) refuse(2);
    if (rest_.front() == ']') in_class_ = false;
    copy();
  }

  void outside() {
    if (rest_.front() == '[') {
      in_class_ = true;
      if (!take("[^")) take("[");
      if (rest_.starts_with(']')) refuse(1);
    } else if (rest_.front() == '(') {
      for (const std::string_view opening : {"(?i:", "(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>"}) {
        if (take(opening)) return;
      }
      if (rest_.starts_with("(?") || rest_.starts_with("(*")) refuse(3);
      copy();
    } else if (rest_.front() == '.' || rest_.front() == '^' || rest_.front() == '$') {
      refuse(1);
    } else if (rest_.starts_with("}+")) {
      refuse(2);  // possessive in PCRE2 alone
    } else {
      copy();
    }
  }

  void escape() {
    static const std::string letters = members("\\p{L}", utf8::kNewerLetters);
    static const std::string numbers = members("\\p{N}", utf8::kNewerNumbers);
    if (one_of("\\s", kSpaces, false) || one_of("\\S", kSpaces, true)) return;
    if (one_of("\\p{L}", letters, false) || one_of("\\P{L}", letters, true)) return;
    if (one_of("\\p{N}", numbers, false) || one_of("\\P{N}", numbers, true)) return;
    const char escaped = rest_.size() > 1 ? rest_[1] : 'A';
    const bool is_letter = (escaped >= 'a' && escaped <= 'z') || (escaped >= 'A' && escaped <= 'Z');
    const bool is_digit = escaped >= '0' && escaped <= '9';
    const bool is_end = escaped == 'r' || escaped == 'n' || escaped == 't';
    if ((is_letter && !is_end) || is_digit || static_cast<unsigned char>(escaped) >= 0x80) refuse(2);
    take(rest_.substr(0, 2));
  }

  bool one_of(std::string_view name, std::string_view characters, bool all_others) {
    if (!rest_.starts_with(name)) return false;
    if (in_class_ && all_others) refuse(name.size());
    rest_.remove_prefix(name.size());
    const std::string written(characters);
    written_ += in_class_ ? written : (all_others ? "[^" : "[") + written + "]";
    return true;
  }

  std::string_view rest_;
  std::string written_;
  bool in_class_ = false;
};

std::string message(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

PCRE2_SPTR bytes(std::string_view text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

}  // namespace

Expression::Expression(std::string_view pattern) {
  const std::string translated = Translation(pattern).run();
  int error = 0;
  PCRE2_SIZE at = 0;
  pcre2_code* code = pcre2_compile(bytes(translated), translated.size(),
                                   PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &at, nullptr);
  if (code == nullptr) {
    throw BundleError("the expression " + utf8::repr(pattern) + " cannot be read: " + message(error));
  }
  code_ = std::shared_ptr<const void>(
      code, [](const void* owned) { pcre2_code_free(static_cast<pcre2_code*>(const_cast<void*>(owned))); });
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where it is not available, the interpreter runs
}

std::vector<Match> Expression::find_all(std::string_view text) const {
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(
      pcre2_match_data_create_from_pattern(code, nullptr), pcre2_match_data_free);
  if (!data) throw std::bad_alloc();
  std::vector<Match> matches;
  std::size_t from = 0;
  while (from <= text.size()) {
    const auto match = [&](std::uint32_t options) {
      return pcre2_match(code, bytes(text), text.size(), from, options, data.get(), nullptr);
    };
    int found = match(PCRE2_NO_UTF_CHECK);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) found = match(PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT);
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0) throw InputError("an expression of the bundle's tokenizer fails: " + message(found));
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data.get());
    const Match next{ends[0], ends[1]};
    if (next.begin == next.end && !matches.empty() && matches.back().end == next.end) {
      if (from == text.size()) break;
      from += utf8::at(text, from).size;
    } else {
      matches.push_back(next);
      from = next.end;
    }
  }
  return matches;
}

Pattern::Pattern(const Value& value) {
  const Object pattern(value);
  if (const auto regex = pattern.given("Regex")) {
    expression_ = std::make_shared<const Expression>(regex->text());
  } else {
    literal_ = pattern.get("String").text();
    if (literal_.empty()) refuse_part(value.path() + ": an empty text", "one of a character or more");
  }
}

std::vector<Match> Pattern::find_all(std::string_view text) const {
  return expression_ ? expression_->find_all(text) : find_literal(text, literal_);
}

std::vector<Match> find_literal(std::string_view text, std::string_view literal) {
  std::vector<Match> matches;
  for (std::size_t at = 0; (at = text.find(literal, at)) != text.npos; at += literal.size()) {
    matches.push_back({at, at + literal.size()});
  }
  return matches;
}

}  // namespace star
