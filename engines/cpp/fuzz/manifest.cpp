// manifest.json, and the header of a file of weights.
#include "bundle/manifest.hpp"

#include <vector>

#include "fuzz.hpp"
#include "json_mutator.hpp"
#include "session/mapped.hpp"

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most,
                                               unsigned seed) {
  return star::fuzz::mutate_json(data, size, most, seed);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  star::fuzz::refusing([&] {
    const star::Json values = star::parse_json(star::fuzz::text(data, size));
    if (!values.is_object() || !values.contains("format_version")) return;
    if (!star::wrong_version(values).empty()) return;
    const star::Manifest manifest = star::read_manifest(values);
    star::contract_of(manifest.spec);
  });
  star::fuzz::refusing([&] {
    // As files have it: the header's length before it, and values behind it.
    std::vector<std::byte> file(8 + size + 64);
    for (std::size_t i = 0; i < 8; ++i) file[i] = static_cast<std::byte>(size >> (8 * i) & 0xff);
    for (std::size_t i = 0; i < size; ++i) file[8 + i] = static_cast<std::byte>(data[i]);
    star::tensors_of(file, "weights.safetensors");
  });
  return 0;
}
