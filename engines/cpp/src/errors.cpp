#include "errors.hpp"

namespace star {
namespace {

// Noncharacters, which Unicode keeps for use inside a program, around an option's name.
constexpr std::string_view kBegin = "\xEF\xB7\x90", kEnd = "\xEF\xB7\x91";

}  // namespace

Error::Error(ErrorKind kind, const std::string& marked)
    : std::runtime_error(spelled(marked, [](const std::string& name) { return name; })),
      kind_(kind),
      marked_(marked) {}

std::string option(std::string_view name) { return std::string(kBegin).append(name).append(kEnd); }

std::string spelled(std::string_view marked, const std::function<std::string(const std::string&)>& spell) {
  std::string text;
  while (true) {
    const std::size_t begin = marked.find(kBegin);
    const std::size_t end = begin == marked.npos ? begin : marked.find(kEnd, begin);
    if (end == marked.npos) return text.append(marked);
    const std::size_t name = begin + kBegin.size();
    text.append(marked.substr(0, begin)).append(spell(std::string(marked.substr(name, end - name))));
    marked.remove_prefix(end + kEnd.size());
  }
}

}  // namespace star
