// JPEG through libjpeg-turbo, as Pillow reads it. The header is walked through first, for what libjpeg does
// not keep: EXIF and XMP data.
// clang-format off
#include <cstdio>  // jpeglib.h needs it before.
#include <jpeglib.h>
// clang-format on

#include <algorithm>
#include <csetjmp>
#include <memory>

#include "image/formats.hpp"

namespace star::formats {
namespace {

constexpr std::uint8_t kStartOfScan = 0xDA;

struct Header {
  int width = 0;
  int height = 0;
  int channels = 0;
  bool has_resolution = false;
  Metadata metadata;
};

class HeaderReader {
 public:
  HeaderReader(Bytes file, std::string_view name) : file_(file), name_(name) {}

  Header read() {
    std::size_t at = 3;  // Behind the first marker and the 0xFF of the second.
    bool marker = true;
    for (std::uint8_t code = 0; code != kStartOfScan;) {
      if (at >= file_.size()) cannot_decode(name_, "it ends in the header");
      code = file_[at++];
      if (!marker) {
        marker = code == 0xFF;
        code = 0;
      } else if (code != 0xFF) {
        marker = false;
        if (code > 0 && code < 0xC0) cannot_decode(name_, "its header is damaged");
        if (has_segment(code)) segment(code, at);
      }
    }
    if (header_.channels == 0) cannot_decode(name_, "it has no size");
    return std::move(header_);
  }

 private:
  static bool has_segment(std::uint8_t code) {
    const bool alone = code == 0xC8 || (code >= 0xD0 && code <= 0xD9) || (code >= 0xF0 && code <= 0xFD);
    return code >= 0xC0 && !alone;
  }

  void segment(std::uint8_t code, std::size_t& at) {
    if (file_.size() - at < 2) cannot_decode(name_, "it ends in the header");
    const std::size_t length = std::max<std::size_t>(big16(file_, at), 2) - 2;
    at += 2;
    if (file_.size() - at < length) cannot_decode(name_, "it ends in the header");
    const Bytes content = file_.subspan(at, length);
    at += length;
    // DHT, DAC and JPG are among the start-of-frame codes, but none.
    if (code >= 0xC0 && code <= 0xCF && code != 0xC4 && code != 0xCC) {
      frame(content);
    } else if (code == 0xE0 && text(content).starts_with("JFIF")) {
      const std::uint8_t unit = content.size() >= 12 ? content[7] : 0;
      header_.has_resolution |= unit == 1 || unit == 2;
    } else if (code == 0xE1) {
      application(text(content));
    }
  }

  void frame(Bytes content) {
    if (content.size() < 6) cannot_decode(name_, "its header is damaged");
    const int channels = content[5];
    if (content[0] != 8) {
      cannot_decode(name_, "it has " + std::to_string(content[0]) + " bits per channel, expected 8");
    }
    if (channels != 1 && channels != 3 && channels != 4) {
      cannot_decode(name_, "it has " + std::to_string(channels) + " channels, expected 1, 3 or 4");
    }
    header_.height = static_cast<int>(big16(content, 1));
    header_.width = static_cast<int>(big16(content, 3));
    header_.channels = channels;
  }

  void application(std::string_view content) {
    constexpr std::string_view kExif("Exif\0\0", 6), kXmp("http://ns.adobe.com/xap/1.0/\0", 29);
    std::optional<std::string>& exif = header_.metadata.exif;
    if (content.starts_with(kExif)) {
      exif = exif ? *exif + std::string(content.substr(kExif.size())) : std::string(content);
    } else if (content.starts_with(kXmp)) {
      header_.metadata.xmp = content.substr(kXmp.size());
    }
  }

  Bytes file_;
  std::string_view name_;
  Header header_;
};

enum class Outcome { kDecoded, kTruncated, kDamaged };

// libjpeg's state. Its errors jump, so that nothing with a destructor may live in the functions between.
class Decoder {
 public:
  Decoder(Bytes file, Header& header, Picture& picture) : header_(header), picture_(picture) {
    info_.err = jpeg_std_error(&errors_);
    errors_.error_exit = [](j_common_ptr info) {
      std::longjmp(static_cast<Decoder*>(info->client_data)->jump_, 1);
    };
    errors_.output_message = [](j_common_ptr) {};
    info_.client_data = this;
    jpeg_create_decompress(&info_);
    info_.src = &source_;
    source_.next_input_byte = file.data();
    source_.bytes_in_buffer = file.size();
    source_.init_source = source_.term_source = [](j_decompress_ptr) {};
    // No more bytes: libjpeg gives up where it is.
    source_.fill_input_buffer = [](j_decompress_ptr) -> boolean { return FALSE; };
    source_.resync_to_restart = jpeg_resync_to_restart;
    source_.skip_input_data = [](j_decompress_ptr info, long count) {
      const auto skipped =
          std::min(static_cast<std::size_t>(std::max(count, 0L)), info->src->bytes_in_buffer);
      info->src->next_input_byte += skipped;
      info->src->bytes_in_buffer -= skipped;
    };
  }
  ~Decoder() { jpeg_destroy_decompress(&info_); }
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  Outcome decode() {
    if (setjmp(jump_) != 0) return Outcome::kDamaged;
    int found = JPEG_HEADER_TABLES_ONLY;
    while (found == JPEG_HEADER_TABLES_ONLY) found = jpeg_read_header(&info_, FALSE);
    if (found == JPEG_SUSPENDED) return Outcome::kTruncated;
    const bool same = static_cast<int>(info_.image_width) == header_.width &&
                      static_cast<int>(info_.image_height) == header_.height &&
                      info_.num_components == header_.channels;
    if (!same) return Outcome::kDamaged;
    info_.out_color_space = header_.channels == 1   ? JCS_GRAYSCALE
                            : header_.channels == 3 ? JCS_RGB
                                                    : JCS_CMYK;
    if (!jpeg_start_decompress(&info_)) return Outcome::kTruncated;
    while (info_.output_scanline < info_.output_height) {
      const std::size_t y = info_.output_scanline;
      JSAMPROW row = row_.get();
      if (jpeg_read_scanlines(&info_, &row, 1) != 1) return Outcome::kTruncated;
      put(&picture_.rgb[y * static_cast<std::size_t>(header_.width) * 3]);
    }
    jpeg_finish_decompress(&info_);  // As in Pillow, what follows may be cut off, but not damaged.
    return Outcome::kDecoded;
  }

 private:
  void put(std::uint8_t* rgb) const {
    const std::uint8_t* from = row_.get();
    for (int x = 0; x < header_.width; ++x, rgb += 3, from += header_.channels) {
      for (int channel = 0; channel < 3; ++channel) {
        rgb[channel] = header_.channels == 1   ? from[0]
                       : header_.channels == 3 ? from[channel]
                                               : printed(from[channel], from[3]);
      }
    }
  }

  // Ink and black, stored inverted as Adobe does, as light.
  static std::uint8_t printed(unsigned inverted_ink, unsigned inverted_black) {
    const unsigned product = (255 - inverted_ink) * inverted_black + 128;
    return static_cast<std::uint8_t>(inverted_black - (((product >> 8) + product) >> 8));
  }

  Header& header_;
  Picture& picture_;
  std::unique_ptr<std::uint8_t[]> row_ = std::make_unique<std::uint8_t[]>(
      static_cast<std::size_t>(header_.width) * static_cast<std::size_t>(header_.channels));
  jpeg_decompress_struct info_{};
  jpeg_error_mgr errors_{};
  jpeg_source_mgr source_{};
  std::jmp_buf jump_;
};

}  // namespace

bool is_jpeg(Bytes file) { return text(file).starts_with("\xFF\xD8\xFF"); }

Decoded read_jpeg(Bytes file, std::string_view name) {
  Header header = HeaderReader(file, name).read();
  check_size(header.width, header.height, name);
  Picture picture{header.width, header.height, {}};
  picture.rgb.resize(static_cast<std::size_t>(header.width) * static_cast<std::size_t>(header.height) * 3);
  switch (Decoder(file, header, picture).decode()) {
    case Outcome::kTruncated:
      cannot_decode(name, "the file is truncated");
    case Outcome::kDamaged:
      cannot_decode(name, "its data is damaged");
    case Outcome::kDecoded:
      break;
  }
  return {std::move(picture), std::move(header.metadata), !header.has_resolution};
}

}  // namespace star::formats
