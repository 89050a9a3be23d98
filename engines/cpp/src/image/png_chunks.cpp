#include "image/png_chunks.hpp"

#include <zlib.h>

#include <algorithm>
#include <cctype>

namespace star::formats {
namespace {

constexpr std::size_t kSignatureBytes = 8;
constexpr std::size_t kChecksumBytes = 4;
constexpr std::size_t kMaxTextBytes = std::size_t{1} << 20;

struct Minimum {
  std::string_view kind;
  std::size_t bytes;
};
// Pillow refuses shorter ones.
constexpr Minimum kMinimums[] = {{"IHDR", 13}, {"gAMA", 4}, {"cHRM", 32}, {"sRGB", 1},
                                 {"pHYs", 9},  {"acTL", 8}, {"fcTL", 26}, {"fdAT", 4}};

struct Inflated {
  std::string bytes;
  bool valid = false;
  bool too_large = false;
};

// As Pillow: what is cut off is valid, and more than a megabyte too large.
Inflated inflated(std::string_view compressed) {
  Inflated result;
  z_stream stream{};
  if (inflateInit(&stream) != Z_OK) return result;
  result.bytes.resize(std::min(kMaxTextBytes, compressed.size() * 1032 + 64));
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(compressed.data()));
  stream.avail_in = static_cast<uInt>(compressed.size());
  stream.next_out = reinterpret_cast<Bytef*>(result.bytes.data());
  stream.avail_out = static_cast<uInt>(result.bytes.size());
  const int state = inflate(&stream, Z_SYNC_FLUSH);
  result.valid = state == Z_OK || state == Z_STREAM_END || state == Z_BUF_ERROR;
  result.too_large = state != Z_STREAM_END && stream.avail_in > 0;
  result.bytes.resize(stream.total_out);
  inflateEnd(&stream);
  return result;
}

// The bytes that hexadecimal digits from the fourth line on stand for.
std::optional<std::string> raw_profile(std::string_view text) {
  for (int line = 0; line < 3; ++line) {
    const std::size_t end = text.find('\n');
    if (end == std::string_view::npos) return "";
    text.remove_prefix(end + 1);
  }
  std::string digits, bytes;
  for (const char c : text) {
    if (c != '\n') digits += c;
  }
  const auto digit = [](char c) {
    const auto value = static_cast<unsigned char>(c);
    return std::isdigit(value) ? c - '0' : std::isxdigit(value) ? std::tolower(value) - 'a' + 10 : -1;
  };
  for (std::size_t i = 0; i < digits.size();) {
    if (std::isspace(static_cast<unsigned char>(digits[i]))) {
      ++i;
      continue;
    }
    if (i + 1 >= digits.size() || digit(digits[i]) < 0 || digit(digits[i + 1]) < 0) return std::nullopt;
    bytes += static_cast<char>(digit(digits[i]) * 16 + digit(digits[i + 1]));
    i += 2;
  }
  return bytes;
}

}  // namespace

void PngChunkReader::read_before_pixels() {
  for (std::size_t at = kSignatureBytes;;) {
    bool whole = false;
    const std::optional<Chunk> chunk = chunk_at(at, whole);
    if (!chunk) cannot_decode(name_, "the file is truncated or damaged");
    if (chunk->kind == "IDAT") {
      first_pixels_ = at;
      break;
    }
    if (!whole) cannot_decode(name_, "the file is truncated");
    if (chunk->kind == "IEND" || chunk->kind == "fdAT") cannot_decode(name_, "it has no pixels");
    take(*chunk);
    check_sum(*chunk);
    at = chunk->end + kChecksumBytes;
  }
  if (chunks_.bits == 0) cannot_decode(name_, "it has no header");
  find_cut_off();
}

void PngChunkReader::find_cut_off() {
  bool whole = true;
  for (std::size_t at = first_pixels_; whole;) {
    const std::optional<Chunk> chunk = chunk_at(at, whole);
    if (!chunk || chunk->kind != "IDAT") return;
    if (!whole) chunks_.cut_off = at;
    at = chunk->end + kChecksumBytes;
  }
}

void PngChunkReader::read_behind_pixels(std::size_t decoded) {
  // Pillow stops at an animation's next frame; a picture in front of its first is one more.
  const bool animated = sequence_ == 0 ? frames_ > 0 : frames_ > 1;
  bool pixels = true;
  for (std::size_t at = first_pixels_;;) {
    bool whole = false;
    const std::optional<Chunk> chunk = chunk_at(at, whole);
    if (!chunk || chunk->kind == "IEND" || (animated && chunk->kind == "fcTL")) break;
    // The chunk in which the pixels end may be cut off behind them.
    const bool last_pixels = pixels && decoded <= chunk->end;
    if (!whole && !last_pixels) cannot_decode(name_, "the file is truncated");
    if (!pixels) take(*chunk);
    if (last_pixels) pixels = false;
    at = std::min(chunk->end + kChecksumBytes, file_.size());
  }
  if (!chunks_.metadata.exif && !raw_profile_.empty()) {
    chunks_.metadata.exif = raw_profile(raw_profile_);
    if (!chunks_.metadata.exif) cannot_decode(name_, "its EXIF data is unreadable");
  }
}

std::optional<PngChunkReader::Chunk> PngChunkReader::chunk_at(std::size_t at, bool& whole) const {
  if (at > file_.size() || file_.size() - at < 8) return std::nullopt;
  const std::string_view kind = text(file_.subspan(at + 4, 4));
  const bool named = std::all_of(kind.begin(), kind.end(), [](char c) {
    return c == '_' || std::isalnum(static_cast<unsigned char>(c));
  });
  if (!named) return std::nullopt;
  const std::size_t length = big32(file_, at), there = file_.size() - at - 8;
  whole = length <= there;
  return Chunk{kind, file_.subspan(at + 8, std::min(length, there)), at + 8 + length};
}

void PngChunkReader::check_sum(const Chunk& chunk) const {
  if (chunk.end > file_.size() || file_.size() - chunk.end < kChecksumBytes) {
    cannot_decode(name_, "the file is truncated");
  }
  const auto* kind = reinterpret_cast<const Bytef*>(chunk.kind.data());
  uLong sum = crc32_z(crc32_z(0, kind, chunk.kind.size()), chunk.content.data(), chunk.content.size());
  // zlib begins anew where the bytes are a null pointer.
  if (chunk.content.empty()) sum = crc32_z(0, kind, chunk.kind.size());
  if (sum != big32(file_, chunk.end)) {
    cannot_decode(name_, "the checksum of " + std::string(chunk.kind) + " is wrong");
  }
}

void PngChunkReader::take(const Chunk& chunk) {
  for (const Minimum& minimum : kMinimums) {
    if (chunk.kind == minimum.kind && chunk.content.size() < minimum.bytes) {
      cannot_decode(name_, std::string(chunk.kind) + " is too short");
    }
  }
  if (chunk.kind == "IHDR") take_header(chunk.content);
  if (chunk.kind == "PLTE" && first_pixels_ == 0) {
    chunks_.palette.assign(chunk.content.begin(), chunk.content.end());
  }
  if (chunk.kind == "tRNS") take_transparency(chunk.content);
  if (chunk.kind == "acTL") take_animation(chunk.content);
  if (chunk.kind == "fdAT") take_sequence(chunk.content);
  if (chunk.kind == "fcTL") take_frame(chunk.content);
  if (chunk.kind == "iCCP") take_profile(chunk.content);
  if (chunk.kind == "tEXt") take_text(chunk.content, false);
  if (chunk.kind == "zTXt") take_text(chunk.content, true);
  if (chunk.kind == "iTXt") take_international_text(chunk.content);
  if (chunk.kind == "eXIf") {
    chunks_.metadata.exif = std::string("Exif\0\0", 6).append(text(chunk.content));
  }
}

void PngChunkReader::take_header(Bytes content) {
  if (chunks_.bits != 0) cannot_decode(name_, "it has two headers");
  chunks_.width = big32(content, 0);
  chunks_.height = big32(content, 4);
  chunks_.bits = content[8];
  chunks_.colour = content[9];
  const int bits = chunks_.bits, colour = chunks_.colour;
  const bool small = bits == 1 || bits == 2 || bits == 4;
  const bool known = colour == 0   ? small || bits == 8 || bits == 16
                     : colour == 3 ? small || bits == 8
                                   : (colour == 2 || colour == 4 || colour == 6) && (bits == 8 || bits == 16);
  if (!known || content[11] != 0) cannot_decode(name_, "its header is damaged");
}

void PngChunkReader::take_animation(Bytes content) {
  const std::uint32_t frames = big32(content, 0);
  frames_ = frames_ == 0 && frames <= 0x80000000 ? frames : 0;
}

// An animation is its first frame, which is as large as the picture.
void PngChunkReader::take_frame(Bytes content) {
  take_sequence(content);
  const std::uint64_t right = std::uint64_t{big32(content, 4)} + big32(content, 12);
  const std::uint64_t bottom = std::uint64_t{big32(content, 8)} + big32(content, 16);
  if (right > chunks_.width || bottom > chunks_.height) cannot_decode(name_, "a frame is larger than it");
  const bool whole = big32(content, 4) == chunks_.width && big32(content, 8) == chunks_.height;
  if (first_pixels_ == 0 && !whole) cannot_decode(name_, "its first frame is not all of it");
}

void PngChunkReader::take_sequence(Bytes content) {
  if (big32(content, 0) != sequence_) cannot_decode(name_, "its frames are not in order");
  ++sequence_;
}

void PngChunkReader::take_transparency(Bytes content) {
  const int colour = chunks_.colour;
  const std::size_t least = colour == 0 ? 2 : colour == 2 ? 6 : 0;
  if (content.size() < least) cannot_decode(name_, "tRNS is too short");
  if (colour == 3 && content.size() > 256) cannot_decode(name_, "tRNS is too long");
  if (colour == 0 || colour == 2 || colour == 3) {
    chunks_.transparency.emplace(content.begin(), content.end());
  }
}

void PngChunkReader::take_profile(Bytes content) const {
  const std::string_view all = text(content);
  const std::size_t method = all.find('\0') + 1;  // 0 without an end of the name: Pillow looks there, too.
  if (method >= all.size() || all[method] != 0) cannot_decode(name_, "iCCP is damaged");
  const Inflated profile = inflated(all.substr(method + 1));
  if (profile.valid && profile.too_large) cannot_decode(name_, "its colour profile is too large");
}

void PngChunkReader::take_text(Bytes content, bool compressed) {
  const std::string_view all = text(content);
  const std::size_t end = std::min(all.find('\0'), all.size());
  std::string value(all.substr(std::min(end + 1, all.size())));
  if (compressed) {
    if (!value.empty() && value[0] != 0) cannot_decode(name_, "zTXt is damaged");
    const Inflated found = inflated(std::string_view(value).substr(value.empty() ? 0 : 1));
    if (found.valid && found.too_large) cannot_decode(name_, "a text in it is too large");
    value = found.valid ? found.bytes : "";
  }
  set_text(all.substr(0, end), std::move(value), !compressed);
}

void PngChunkReader::take_international_text(Bytes content) {
  std::string_view rest = text(content);
  std::size_t end = rest.find('\0');
  if (end == std::string_view::npos || rest.size() - end < 3) return;
  const std::string_view key = rest.substr(0, end);
  const bool compressed = rest[end + 1] != 0, known = rest[end + 2] == 0;
  rest.remove_prefix(end + 3);
  for (int part = 0; part < 2; ++part) {  // Language and translated key.
    end = rest.find('\0');
    if (end == std::string_view::npos) return;
    rest.remove_prefix(end + 1);
  }
  std::string value(rest);
  if (compressed) {
    if (!known) return;
    Inflated found = inflated(rest);
    if (found.valid && found.too_large) cannot_decode(name_, "a text in it is too large");
    if (!found.valid) return;
    value = std::move(found.bytes);
  }
  set_text(key, std::move(value), false);
}

void PngChunkReader::set_text(std::string_view key, std::string value, bool plain) {
  if (key == "exif") {
    if (!plain) cannot_decode(name_, "its EXIF data is unreadable");
    chunks_.metadata.exif = std::move(value);
  } else if (key == "Raw profile type exif") {
    raw_profile_ = std::move(value);
  } else if (key == "XML:com.adobe.xmp") {
    chunks_.metadata.xmp = std::move(value);
  } else if (key == "transparency") {
    // Pillow takes the text for the transparent colour, and fails.
    cannot_decode(name_, "a text in it is called transparency");
  }
}

}  // namespace star::formats
