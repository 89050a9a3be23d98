// Changes of JSON that leave it JSON: changed bytes seldom come past the parser. A header of one fuzzer each.
#pragma once

#include <cstdint>
#include <cstring>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <string_view>
#include <vector>

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

namespace star::fuzz {

using nlohmann::json;

inline void collect(json& value, std::vector<json*>& all) {
  all.push_back(&value);
  if (!value.is_structured()) return;
  for (json& inner : value) collect(inner, all);
}

inline std::string mutated(std::string text) {
  const std::size_t size = text.size();
  text.resize(size + 8);
  text.resize(LLVMFuzzerMutate(reinterpret_cast<std::uint8_t*>(text.data()), size, text.size()));
  return text;
}

// Another value, another number or text, one less or one more.
inline void change(json& value, const json& other, std::minstd_rand& chance) {
  static const std::vector<json> odd{nullptr,
                                     true,
                                     -1,
                                     0,
                                     1,
                                     2,
                                     1e300,
                                     0.5,
                                     "",
                                     "x",
                                     json::array(),
                                     json::object(),
                                     std::int64_t{1} << 31,
                                     INT64_MAX,
                                     UINT64_MAX};
  const auto below = [&chance](std::size_t count) { return chance() % count; };
  const std::size_t what = below(5);
  if (what == 0) {
    value = odd[below(odd.size())];
  } else if (what == 1) {
    value = json(other);
  } else if (value.is_structured() && !value.empty()) {
    const auto at = std::next(value.begin(), static_cast<std::ptrdiff_t>(below(value.size())));
    if (what == 2) {
      value.erase(at);
    } else if (value.is_array()) {
      value.insert(value.end(), json(*at));
    } else {
      value[mutated(at.key())] = json(*at);
    }
  } else if (value.is_string()) {
    value = mutated(value.get<std::string>());
  } else if (value.is_number_integer()) {
    value = static_cast<std::int64_t>(value.get<std::uint64_t>() + below(5) - 2);
  } else {
    value = odd[below(odd.size())];
  }
}

}  // namespace star::fuzz

// The JSON before the first NUL; what is behind it is text, which changes by bytes.
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most,
                                               unsigned seed) {
  using namespace star::fuzz;
  const std::string_view all(reinterpret_cast<const char*>(data), size);
  const std::size_t end = std::min(all.find('\0'), size);
  json document = json::parse(all.substr(0, end), nullptr, false);
  std::minstd_rand chance(seed);
  if (document.is_discarded() || chance() % 4 == 0) return LLVMFuzzerMutate(data, size, most);
  std::vector<json*> values;
  collect(document, values);
  const json other = *values[chance() % values.size()];
  change(*values[chance() % values.size()], other, chance);
  std::string text = document.dump(-1, ' ', false, json::error_handler_t::replace);
  text += all.substr(end);
  if (text.size() > most) return LLVMFuzzerMutate(data, size, most);
  std::memcpy(data, text.data(), text.size());
  return text.size();
}
