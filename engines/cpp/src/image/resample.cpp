// The algorithm, its filters and its rounding are those of Pillow (libImaging/Resample.c, Geometry.c):
//
// The Python Imaging Library (PIL) is
//
//     Copyright © 1997-2011 by Secret Labs AB
//     Copyright © 1995-2011 by Fredrik Lundh and contributors
//
// Pillow is the friendly PIL fork. It is
//
//     Copyright © 2010 by Jeffrey 'Alex' Clark and contributors
//
// Like PIL, Pillow is licensed under the open source MIT-CMU License:
//
// By obtaining, using, and/or copying this software and/or its associated documentation, you agree that you
// have read, understood, and will comply with the following terms and conditions:
//
// Permission to use, copy, modify and distribute this software and its documentation for any purpose and
// without fee is hereby granted, provided that the above copyright notice appears in all copies, and that
// both that copyright notice and this permission notice appear in supporting documentation, and that the name
// of Secret Labs AB or the author not be used in advertising or publicity pertaining to distribution of the
// software without specific, written prior permission.
//
// SECRET LABS AB AND THE AUTHOR DISCLAIMS ALL WARRANTIES WITH REGARD TO THIS SOFTWARE, INCLUDING ALL IMPLIED
// WARRANTIES OF MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL SECRET LABS AB OR THE AUTHOR BE LIABLE FOR ANY
// SPECIAL, INDIRECT OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR
// PROFITS, WHETHER IN AN ACTION OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF OR IN
// CONNECTION WITH THE USE OR PERFORMANCE OF THIS SOFTWARE.
#include "image/resample.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

namespace star {
namespace {

using Size = std::size_t;

// Weights are whole numbers: eight bits are the result's, and two are left for sums beyond it.
constexpr int kPrecisionBits = 32 - 8 - 2;
constexpr Size kChannels = 3;

struct Filter {
  double (*weight)(double distance);
  double support;
};

double box(double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }

double bilinear(double x) {
  x = std::fabs(x);
  return x < 1.0 ? 1.0 - x : 0.0;
}

double hamming(double x) {
  x = std::fabs(x);
  if (x == 0.0) return 1.0;
  if (x >= 1.0) return 0.0;
  x *= std::numbers::pi;
  // Pillow's constants are single precision.
  return std::sin(x) / x * (static_cast<double>(0.54F) + static_cast<double>(0.46F) * std::cos(x));
}

double bicubic(double x) {
  constexpr double kSharpness = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((kSharpness + 2.0) * x - (kSharpness + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * kSharpness;
  return 0.0;
}

double sinc(double x) {
  if (x == 0.0) return 1.0;
  x *= std::numbers::pi;
  return std::sin(x) / x;
}

double lanczos(double x) { return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

Filter filter_of(Resampling resampling) {
  switch (resampling) {
    case Resampling::kLanczos:
      return {lanczos, 3.0};
    case Resampling::kBilinear:
      return {bilinear, 1.0};
    case Resampling::kBox:
      return {box, 0.5};
    case Resampling::kHamming:
      return {hamming, 1.0};
    default:
      return {bicubic, 2.0};
  }
}

// What each place along a side is made of.
struct Weights {
  struct Span {
    Size first;
    Size count;
  };
  std::vector<Span> spans;
  std::vector<std::int32_t> values;
  Size stride;

  const std::int32_t* at(Size place) const { return &values[place * stride]; }
};

Weights weights_of(int from, int to, const Filter& filter) {
  const double scale = static_cast<double>(from) / to;
  const double stretch = std::max(scale, 1.0);
  const double support = filter.support * stretch;
  const auto places = static_cast<Size>(to);
  Weights weights{std::vector<Weights::Span>(places), {}, static_cast<Size>(std::ceil(support)) * 2 + 1};
  weights.values.resize(places * weights.stride);
  std::vector<double> shares(weights.stride);
  for (Size place = 0; place < places; ++place) {
    const double centre = (static_cast<double>(place) + 0.5) * scale;
    const int first = std::max(static_cast<int>(centre - support + 0.5), 0);
    const int count = std::min(static_cast<int>(centre + support + 0.5), from) - first;
    double sum = 0.0;
    for (int i = 0; i < count; ++i) {
      const double share = filter.weight((i + first - centre + 0.5) * (1.0 / stretch));
      shares[static_cast<Size>(i)] = share;
      sum += share;
    }
    weights.spans[place] = {static_cast<Size>(first), static_cast<Size>(count)};
    for (Size i = 0; i < static_cast<Size>(count); ++i) {
      const double share = sum != 0.0 ? shares[i] / sum : shares[i];
      const double rounding = share < 0 ? -0.5 : 0.5;
      weights.values[place * weights.stride + i] =
          static_cast<std::int32_t>(rounding + share * (1 << kPrecisionBits));
    }
  }
  return weights;
}

constexpr std::int32_t kHalf = 1 << (kPrecisionBits - 1);

std::uint8_t rounded(std::int32_t sum) {
  return static_cast<std::uint8_t>(std::clamp(sum >> kPrecisionBits, 0, 255));
}

Picture empty(int width, int height) {
  Picture picture{width, height, {}};
  picture.rgb.resize(static_cast<Size>(width) * static_cast<Size>(height) * kChannels);
  return picture;
}

Picture resampled_across(const Picture& from, int width, const Filter& filter) {
  const Weights weights = weights_of(from.width, width, filter);
  Picture to = empty(width, from.height);
  std::uint8_t* out = to.rgb.data();
  for (Size y = 0; y < static_cast<Size>(from.height); ++y) {
    const std::uint8_t* row = &from.rgb[y * static_cast<Size>(from.width) * kChannels];
    for (Size x = 0; x < static_cast<Size>(width); ++x, out += kChannels) {
      const auto [first, count] = weights.spans[x];
      const std::int32_t* weight = weights.at(x);
      const std::uint8_t* pixel = row + first * kChannels;
      std::int32_t red = kHalf, green = kHalf, blue = kHalf;
      for (Size i = 0; i < count; ++i, pixel += kChannels) {
        red += pixel[0] * weight[i];
        green += pixel[1] * weight[i];
        blue += pixel[2] * weight[i];
      }
      out[0] = rounded(red);
      out[1] = rounded(green);
      out[2] = rounded(blue);
    }
  }
  return to;
}

Picture resampled_down(const Picture& from, int height, const Filter& filter) {
  const Weights weights = weights_of(from.height, height, filter);
  Picture to = empty(from.width, height);
  const Size row_bytes = static_cast<Size>(from.width) * kChannels;
  std::vector<std::int32_t> sums(row_bytes);
  for (Size y = 0; y < static_cast<Size>(height); ++y) {
    const auto [first, count] = weights.spans[y];
    std::fill(sums.begin(), sums.end(), kHalf);
    for (Size i = 0; i < count; ++i) {
      const std::uint8_t* row = &from.rgb[(first + i) * row_bytes];
      const std::int32_t weight = weights.at(y)[i];
      for (Size x = 0; x < row_bytes; ++x) sums[x] += row[x] * weight;
    }
    std::transform(sums.begin(), sums.end(), &to.rgb[y * row_bytes], rounded);
  }
  return to;
}

// The source of each place along a side. Pillow adds up the steps, so that their rounding adds up, too.
std::vector<Size> nearest_places(int from, int to) {
  const double step = static_cast<double>(from) / to;
  std::vector<Size> places(static_cast<Size>(to));
  double at = step * 0.5;
  for (Size& place : places) {
    place = static_cast<Size>(std::min(static_cast<int>(at), from - 1));
    at += step;
  }
  return places;
}

Picture nearest(const Picture& from, int width, int height) {
  const std::vector<Size> columns = nearest_places(from.width, width),
                          rows = nearest_places(from.height, height);
  Picture to = empty(width, height);
  std::uint8_t* out = to.rgb.data();
  for (const Size row : rows) {
    const std::uint8_t* pixels = &from.rgb[row * static_cast<Size>(from.width) * kChannels];
    for (const Size column : columns) {
      std::memcpy(out, pixels + column * kChannels, kChannels);
      out += kChannels;
    }
  }
  return to;
}

}  // namespace

Picture resample(const Picture& picture, int width, int height, Resampling resampling) {
  const bool across = width != picture.width, down = height != picture.height;
  if (!across && !down) return picture;
  if (resampling == Resampling::kNearest) return nearest(picture, width, height);
  const Filter filter = filter_of(resampling);
  if (!across) return resampled_down(picture, height, filter);
  if (!down) return resampled_across(picture, width, filter);
  const int shorter = picture.height - height, narrower = picture.width - width;
  // Which pass is first shows in the rounding.
  if (shorter > 0 && shorter > 2 * narrower) {
    return resampled_across(resampled_down(picture, height, filter), width, filter);
  }
  return resampled_down(resampled_across(picture, width, filter), height, filter);
}

}  // namespace star
