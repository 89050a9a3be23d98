// The chunks of a PNG file around its pixels, walked through as Pillow does: libpng would drop or refuse some
// that Pillow takes, such as a damaged colour profile.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "image/formats.hpp"

namespace star::formats {

struct PngChunks {
  std::uint32_t width = 0;
  std::uint32_t height = 0;
  int bits = 0;
  int colour = 0;  // PNG's colour type.
  std::vector<std::uint8_t> palette;
  std::optional<std::vector<std::uint8_t>> transparency;  // tRNS.
  Metadata metadata;
  std::size_t cut_off = std::string::npos;  // Where a chunk of pixels is that the file's end cuts off.
};

class PngChunkReader {
 public:
  PngChunkReader(Bytes file, std::string_view name) : file_(file), name_(name) {}

  // The chunks up to the first of the pixels.
  void read_before_pixels();
  // The chunks behind that of the last pixels, to the end of which the decoder read `decoded` bytes of the
  // file.
  void read_behind_pixels(std::size_t decoded);

  const PngChunks& chunks() const { return chunks_; }

 private:
  struct Chunk {
    std::string_view kind;
    Bytes content;
    std::size_t end;  // Of the content; four bytes of checksum follow.
  };

  // Nothing if there is no whole header; of a chunk that is cut off, the content that is there.
  std::optional<Chunk> chunk_at(std::size_t at, bool& whole) const;
  void find_cut_off();
  void check_sum(const Chunk& chunk) const;
  void take(const Chunk& chunk);
  void take_header(Bytes content);
  void take_animation(Bytes content);
  void take_frame(Bytes content);
  void take_sequence(Bytes content);
  void take_transparency(Bytes content);
  void take_profile(Bytes content) const;
  void take_text(Bytes content, bool compressed);
  void take_international_text(Bytes content);
  void set_text(std::string_view key, std::string value, bool plain);

  Bytes file_;
  std::string_view name_;
  PngChunks chunks_;
  std::string raw_profile_;  // EXIF data as ImageMagick writes it, if there is no eXIf chunk.
  std::size_t first_pixels_ = 0;
  std::uint32_t frames_ = 0;    // Of an animation.
  std::uint32_t sequence_ = 0;  // Number of its next chunk.
};

}  // namespace star::formats
