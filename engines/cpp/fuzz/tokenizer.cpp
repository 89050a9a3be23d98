// A tokenizer's file, and behind a NUL a text that it encodes and decodes.
#include "text/tokenizer.hpp"

#include <algorithm>
#include <string>

#include "fuzz.hpp"
#include "json_mutator.hpp"
#include "text/transcript.hpp"

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most,
                                               unsigned seed) {
  return star::fuzz::mutate_json(data, size, most, seed);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view all = star::fuzz::text(data, size);
  const std::size_t end = std::min(all.find('\0'), size);
  star::fuzz::refusing([&] {
    const star::Tokenizer tokenizer = star::Tokenizer::parse(all.substr(0, end), "tokenizer.json");
    for (const bool special : {false, true}) {
      const auto ids = tokenizer.encode(all.substr(std::min(end + 1, size)), special);
      tokenizer.decode(ids, special);
      star::Transcript transcript(tokenizer, {2}, ids.size() + 1, {"ab", "\n"});
      for (const std::int64_t id : ids) transcript.push(id);
      transcript.finish();
    }
    tokenizer.decode(std::vector<std::int64_t>{-1, 0, 1, 2, 3, std::int64_t{1} << 40});
  });
  return 0;
}
