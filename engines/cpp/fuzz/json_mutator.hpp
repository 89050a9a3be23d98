// Changes of JSON that leave it JSON: changed bytes seldom come past the parser.
#pragma once

#include <algorithm>
#include <cstdint>
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

inline json& one_of(json& value, std::size_t number) {
  return *std::next(value.begin(), static_cast<std::ptrdiff_t>(number % value.size()));
}

// Another value, one less or one more, another number or text.
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
  const bool has_some = value.is_structured() && !value.empty();
  const std::size_t what = chance() % 4;
  if (what == 0) {
    value = json(other);
  } else if (what == 1 && has_some) {
    value.erase(std::next(value.begin(), static_cast<std::ptrdiff_t>(chance() % value.size())));
  } else if (what == 2 && has_some && value.is_array()) {
    value.push_back(json(one_of(value, chance())));
  } else if (what == 2 && has_some) {
    value[mutated(value.begin().key())] = json(one_of(value, chance()));
  } else if (what == 2 && value.is_string()) {
    value = mutated(value.get<std::string>());
  } else if (what == 2 && value.is_number_integer()) {
    value = static_cast<std::int64_t>(value.get<std::uint64_t>() + chance() % 5 - 2);
  } else {
    value = odd[chance() % odd.size()];
  }
}

// The JSON before the first NUL; what is behind it is text, which changes by bytes.
inline std::size_t mutate_json(std::uint8_t* data, std::size_t size, std::size_t most, unsigned seed) {
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
  std::copy(text.begin(), text.end(), data);
  return text.size();
}

}  // namespace star::fuzz
