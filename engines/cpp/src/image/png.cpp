// PNG: the pixels through libpng, what they mean as Pillow has it.
#include <png.h>

#include <cmath>
#include <cstring>

#include "image/formats.hpp"
#include "image/png_chunks.hpp"

namespace star::formats {
namespace {

// libpng's state. Its errors jump, so that nothing with a destructor may live in the functions between.
class Decoder {
 public:
  Decoder(Bytes file, const PngChunks& chunks, std::vector<std::uint8_t>& samples)
      : file_(file), chunks_(chunks), samples_(samples) {
    const auto fail = [](png_structp png, png_const_charp) { png_longjmp(png, 1); };
    png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, nullptr, fail, [](png_structp, png_const_charp) {});
    if (png_ != nullptr) info_ = png_create_info_struct(png_);
  }
  ~Decoder() { png_destroy_read_struct(&png_, &info_, nullptr); }
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  // The samples of all pixels, a byte each, two for grey of 16 bits.
  bool decode() {
    if (png_ == nullptr || info_ == nullptr) return false;
    if (setjmp(png_jmpbuf(png_)) != 0) return has_all_pixels();
    set_up();
    png_read_info(png_, info_);
    if (png_get_image_width(png_, info_) != chunks_.width ||
        png_get_image_height(png_, info_) != chunks_.height) {
      return false;
    }
    png_set_packing(png_);
    // Of 16 bits the upper byte counts, but for grey.
    if (chunks_.bits == 16 && chunks_.colour != PNG_COLOR_TYPE_GRAY) png_set_strip_16(png_);
    const int passes = png_set_interlace_handling(png_);
    png_read_update_info(png_, info_);
    const std::size_t row_bytes = png_get_rowbytes(png_, info_);
    resize(row_bytes * chunks_.height);
    for (int pass = 0; pass < passes; ++pass) {
      for (std::size_t y = 0; y < chunks_.height; ++y) png_read_row(png_, &samples_[y * row_bytes], nullptr);
    }
    return true;
  }
  // Bytes of the file that were read for the last row.
  std::size_t position() const { return pixels_end_; }

 private:
  void set_up() {
    png_set_read_fn(png_, this, [](png_structp png, png_bytep to, std::size_t count) {
      auto& self = *static_cast<Decoder*>(png_get_io_ptr(png));
      if (count > self.file_.size() - self.at_) png_error(png, "truncated");
      std::memcpy(to, self.file_.data() + self.at_, count);
      // Of a chunk that is cut off, libpng shall take what is there: all pixels may be in it.
      if (self.at_ == self.chunks_.cut_off) png_save_uint_32(to, self.rest_behind(self.at_ + 8));
      self.at_ += count;
    });
    png_set_read_user_transform_fn(png_, [](png_structp png, png_row_infop, png_bytep) {
      auto& self = *static_cast<Decoder*>(png_get_io_ptr(png));
      self.pixels_end_ = self.at_;
    });
    // PngChunkReader has checked what Pillow checks, and has read all other chunks.
    png_set_crc_action(png_, PNG_CRC_QUIET_USE, PNG_CRC_QUIET_USE);
    png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);
    png_set_chunk_malloc_max(png_, 0);
    png_set_check_for_invalid_index(png_, 0);
  }

  std::uint32_t rest_behind(std::size_t at) const { return static_cast<std::uint32_t>(file_.size() - at); }

  // Behind its last row libpng looks for the end of the data, which Pillow does not.
  bool has_all_pixels() const {
    constexpr int kPasses = 7;
    return png_get_interlace_type(png_, info_) == PNG_INTERLACE_NONE
               ? png_get_current_row_number(png_) >= chunks_.height
               : png_get_current_pass_number(png_) >= kPasses;
  }

  void resize(std::size_t bytes) { samples_.resize(bytes); }

  Bytes file_;
  const PngChunks& chunks_;
  std::vector<std::uint8_t>& samples_;
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
  std::size_t at_ = 0;
  std::size_t pixels_end_ = 0;
};

struct Pixel {
  std::uint8_t red, green, blue, alpha;
};

// One channel of a pixel on white, rounded as by Pillow's alpha_composite.
std::uint8_t on_white(std::uint32_t value, std::uint32_t alpha) {
  constexpr unsigned kPrecision = 7;
  const std::uint32_t share = alpha << kPrecision, rest = (255u << kPrecision) - share;
  const std::uint32_t sum = value * share + 255 * rest + (0x80u << kPrecision);
  return static_cast<std::uint8_t>((((sum >> 8) + sum) >> 8) >> kPrecision);
}

// What the samples of a picture mean.
class Meaning {
 public:
  explicit Meaning(const PngChunks& chunks) : chunks_(chunks) {
    if (chunks.colour == PNG_COLOR_TYPE_PALETTE) read_palette();
    if (!chunks.transparency) return;
    const Bytes clear = *chunks.transparency;
    for (std::size_t i = 0; chunks.colour != PNG_COLOR_TYPE_PALETTE && i + 1 < clear.size() && i < 6;
         i += 2) {
      clear_[i / 2] = big16(clear, i);
    }
    // Pillow compares one bit with white or black, and the lowest byte with samples that it has scaled.
    if (chunks.bits == 1) clear_[0] = clear_[0] != 0 ? 255 : 0;
  }

  std::size_t samples() const {
    constexpr std::size_t kSamples[] = {1, 0, 3, 1, 2, 0, 4};
    const bool wide = chunks_.colour == PNG_COLOR_TYPE_GRAY && chunks_.bits == 16;
    return wide ? 2 : kSamples[chunks_.colour];
  }

  Pixel pixel(const std::uint8_t* sample) const {
    switch (chunks_.colour) {
      case PNG_COLOR_TYPE_GRAY:
        return chunks_.bits == 16 ? wide_grey(sample) : grey(sample[0]);
      case PNG_COLOR_TYPE_PALETTE:
        return palette_[sample[0]];
      case PNG_COLOR_TYPE_GRAY_ALPHA:
        return {sample[0], sample[0], sample[0], sample[1]};
      case PNG_COLOR_TYPE_RGB_ALPHA:
        return {sample[0], sample[1], sample[2], sample[3]};
      default:
        return {sample[0], sample[1], sample[2], alpha(is_clear(sample))};
    }
  }

 private:
  static std::uint8_t alpha(bool clear) { return clear ? 0 : 255; }

  bool is_clear(const std::uint8_t* sample) const {
    if (!chunks_.transparency) return false;
    return sample[0] == (clear_[0] & 0xFF) && sample[1] == (clear_[1] & 0xFF) &&
           sample[2] == (clear_[2] & 0xFF);
  }

  Pixel grey(unsigned sample) const {
    const auto value = static_cast<std::uint8_t>(sample * (255u / ((1u << chunks_.bits) - 1)));
    return {value, value, value, alpha(chunks_.transparency && value == (clear_[0] & 0xFF))};
  }

  Pixel wide_grey(const std::uint8_t* sample) const {
    const unsigned value = unsigned{sample[0]} << 8 | sample[1];
    const auto scaled = static_cast<std::uint8_t>(std::nearbyint(value * (255.0 / 65535.0)));
    return {scaled, scaled, scaled, alpha(chunks_.transparency && value == clear_[0])};
  }

  void read_palette() {
    palette_.fill({0, 0, 0, 255});  // Black behind the palette's end.
    const std::size_t colours = std::min(chunks_.palette.size() / 3, palette_.size());
    for (std::size_t i = 0; i < colours; ++i) {
      const std::uint8_t* colour = &chunks_.palette[i * 3];
      palette_[i] = {colour[0], colour[1], colour[2], 255};
    }
    if (chunks_.transparency) {
      const std::vector<std::uint8_t>& alphas = *chunks_.transparency;
      // Of a chunk before the header, more.
      const std::size_t known = std::min(alphas.size(), palette_.size());
      for (std::size_t i = 0; i < known; ++i) palette_[i].alpha = alphas[i];
    }
  }

  const PngChunks& chunks_;
  std::array<Pixel, 256> palette_{};
  std::array<std::uint32_t, 3> clear_{};
};

}  // namespace

bool is_png(Bytes file) { return text(file).starts_with("\x89PNG\r\n\x1a\n"); }

Decoded read_png(Bytes file, std::string_view name) {
  PngChunkReader reader(file, name);
  reader.read_before_pixels();
  const PngChunks& chunks = reader.chunks();
  check_size(chunks.width, chunks.height, name);
  std::vector<std::uint8_t> samples;
  Decoder decoder(file, chunks, samples);
  if (!decoder.decode()) cannot_decode(name, "its data is truncated or damaged");
  reader.read_behind_pixels(decoder.position());

  const Meaning meaning(chunks);
  Picture picture{static_cast<int>(chunks.width), static_cast<int>(chunks.height), {}};
  picture.rgb.resize(std::size_t{chunks.width} * chunks.height * 3);
  const std::uint8_t* sample = samples.data();
  for (std::size_t at = 0; at < picture.rgb.size(); at += 3, sample += meaning.samples()) {
    const Pixel pixel = meaning.pixel(sample);
    picture.rgb[at] = on_white(pixel.red, pixel.alpha);
    picture.rgb[at + 1] = on_white(pixel.green, pixel.alpha);
    picture.rgb[at + 2] = on_white(pixel.blue, pixel.alpha);
  }
  return {std::move(picture), chunks.metadata, false};
}

}  // namespace star::formats
