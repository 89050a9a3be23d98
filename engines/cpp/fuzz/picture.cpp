// Picture files to what the vision graph takes, whole and cut into tiles.
#include <zlib.h>

#include <algorithm>
#include <vector>

#include "fuzz.hpp"
#include "image/prepare.hpp"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t most);

namespace {

constexpr std::size_t kSignature = 8, kHeader = 8, kChecksum = 4;

std::uint32_t number(const std::uint8_t* at) {
  return std::uint32_t{at[0]} << 24 | std::uint32_t{at[1]} << 16 | std::uint32_t{at[2]} << 8 | at[3];
}

// Without right checksums a PNG file is refused before anything in it is looked at.
void mend_checksums(std::uint8_t* data, std::size_t size) {
  for (std::size_t at = kSignature; at + kHeader + kChecksum <= size;) {
    const std::size_t length = number(data + at);
    if (length > size - at - kHeader - kChecksum) return;
    std::uint8_t* end = data + at + kHeader + length;
    const uLong sum = crc32_z(0, data + at + 4, length + 4);
    for (int i = 0; i < 4; ++i) end[i] = static_cast<std::uint8_t>(sum >> (24 - 8 * i));
    at += kHeader + length + kChecksum;
  }
}

star::ImageSpec spec(bool cut, unsigned resample) {
  star::ImageSpec spec;
  cut ? void(spec.resize_to = star::Extent{28, 28}) : void(spec.shortest_edge = 32);
  spec.crop = star::Extent{28, 28};
  spec.resample = static_cast<star::Resampling>(resample % 6);
  spec.rescale_factor = 1.0 / 255;
  spec.mean = spec.std = {0.5, 0.5, 0.5};
  return spec;
}

}  // namespace

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t most,
                                               unsigned seed) {
  size = LLVMFuzzerMutate(data, size, most);
  // Some keep a wrong one, for the code that refuses it.
  if (size > kSignature && data[0] == 0x89 && seed % 16 != 0) mend_checksums(data, size);
  return size;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  star::fuzz::refusing([&] {
    const star::Picture picture = star::read_picture({data, size}, "the picture");
    const star::TileShape shape{28, 14, 4};
    const unsigned choice = data[size - 1];
    star::prepare({&picture, 1}, spec(false, choice), shape, std::nullopt);
    const star::Tiling tiling{{{28, 56}, {56, 28}, {56, 56}}, 2, true};
    const std::vector<star::Picture> several(1 + choice % 2, picture);
    for (const auto& image : star::prepare(several, spec(true, choice / 2), shape, tiling)) {
      star::packed_taps(image.packing, shape);
    }
  });
  return 0;
}
