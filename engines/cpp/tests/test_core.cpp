#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "bundle/json.hpp"
#include "bundle/manifest.hpp"
#include "bundle/sha256.hpp"
#include "errors.hpp"
#include "pipeline/device_dtype.hpp"
#include "sampling/sampler.hpp"
#include "session/mapped.hpp"

namespace star {
namespace {

std::string sha256(std::string_view text, std::size_t piece = 1 << 20) {
  Sha256 digest;
  for (; !text.empty(); text.remove_prefix(std::min(piece, text.size()))) {
    digest.update(std::as_bytes(std::span(text.substr(0, piece))));
  }
  return digest.hex();
}

TEST_CASE("SHA-256 is FIPS 180's") {
  CHECK(sha256("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(sha256("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  const std::string million(1000000, 'a');
  for (const std::size_t piece : {std::size_t{1} << 20, std::size_t{63}, std::size_t{65}}) {
    CHECK(sha256(million, piece) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  }
}

TEST_CASE("JSON that is too deep to walk through is refused") {
  const auto nested = [](std::size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  CHECK(repr(parse_json(nested(500))).size() > 20);
  CHECK_THROWS_AS(parse_json(nested(1'000'000)), BundleError);
  CHECK(parse_json("\"\\\"" + std::string(1000, '[') + "\"").is_string());
}

TEST_CASE("bytes of a tensor are counted as far as a number goes") {
  constexpr std::int64_t kHuge = std::int64_t{1} << 40;
  CHECK(bytes_of(4, std::vector<std::int64_t>{2, 3}) == 24);
  CHECK(bytes_of(4, std::vector<std::int64_t>{kHuge, 0, kHuge}) == 0);
  CHECK_FALSE(bytes_of(4, std::vector<std::int64_t>{kHuge, kHuge}));
}

TEST_CASE("random numbers are those of numpy.random.default_rng") {
  CHECK(Random(0).uniform() == 0.6369616873214543);
  CHECK(Random(42).uniform() == 0.7739560485559633);
  Random large(std::uint64_t{1} << 40 | 5);
  CHECK(large.uniform() == 0.004739459374490829);
}

TEST_CASE("the best logit") {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const auto best = [](std::vector<float> logits) { return argmax(logits); };
  CHECK(best({1, 3, 3, 2}) == 1);
  CHECK(best({-kInfinity, -2, -kInfinity}) == 1);
  CHECK(best({-kInfinity, -kInfinity}) == -1);
  CHECK(best({1, kInfinity}) == -1);
  CHECK(best({1, std::nanf("")}) == -1);
  CHECK(best({-0.0F, 0.0F}) == 0);
}

TEST_CASE("sampling settings out of range are refused") {
  CHECK_THROWS_AS(Sampler({.temperature = -1.0}), SettingsError);
  CHECK_THROWS_AS(Sampler({.temperature = std::nan("")}), SettingsError);
  CHECK_THROWS_AS(Sampler({.temperature = 1.0, .top_p = 0.0}), SettingsError);
}

TEST_CASE("values of JSON") {
  const Json json = parse_json(R"({"n": 64, "f": 64.0, "s": "64", "b": true, "u": 18446744073709551615})");
  Object object(Value(json, "spec"));
  CHECK(object.get("n").integer(1, 64) == 64);
  CHECK_THROWS_WITH(object.get("s").integer(1, 64), "spec.s: expected int, got str, found '64'");
  CHECK_THROWS_WITH(object.get("f").integer(1, 64), "spec.f: expected int, got float, found 64.0");
  CHECK_THROWS_WITH(object.get("b").integer(1, 64), "spec.b: expected int, got bool, found True");
  CHECK_THROWS_AS(object.get("u").integer(1, 64), BundleError);
  CHECK_THROWS_WITH(object.get("n").integer(65, 70), "spec.n: expected int >= 65, found 64");
  CHECK_THROWS_WITH(object.get("x"), "spec: object missing required field x");
  object.done();
  Object other(Value(json, ""));
  CHECK_THROWS_WITH(other.done(), "b: unknown to this version");
  CHECK_THROWS_AS(parse_json("{\"a\": NaN}"), BundleError);
  CHECK_THROWS_AS(parse_json(std::string(100000, '[')), BundleError);
  CHECK_THROWS_AS(parse_json(std::string_view("{}\0{}", 5)), BundleError);
}

TEST_CASE("other formats are refused with what to do") {
  CHECK(wrong_version({{"format_version", 5}, {"contract_version", 1}}).empty());
  CHECK(wrong_version({{"format_version", 6}}).find("upgrade") != std::string::npos);
  CHECK(wrong_version({{"format_version", 4}}).find("build the bundle again") != std::string::npos);
  CHECK(wrong_version({{"format_version", "5"}}).find("has bundle format") == 0);
  CHECK(wrong_version({{"format_version", 5}, {"contract_version", 2}}).find("contract 2") !=
        std::string::npos);
}

std::vector<std::byte> safetensors(std::string header, std::size_t bytes, std::uint64_t length) {
  std::vector<std::byte> file(8 + header.size() + bytes);
  std::memcpy(file.data(), &length, 8);
  std::memcpy(file.data() + 8, header.data(), header.size());
  return file;
}

std::size_t count_in(std::string header, std::size_t bytes) {
  header.resize((header.size() + 7) / 8 * 8, ' ');
  return tensors_of(safetensors(header, bytes, header.size()), "weights").size();
}

TEST_CASE("damaged weights files are refused") {
  CHECK(count_in(R"({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}})", 16) == 1);
  CHECK_THROWS_AS(count_in(R"({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}})", 12),
                  BundleError);
  CHECK_THROWS_AS(count_in(R"({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 12]}})", 16),
                  BundleError);
  CHECK_THROWS_AS(count_in(R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]}})", 16),
                  BundleError);
  CHECK_THROWS_AS(
      count_in(
          R"({"a": {"dtype": "F32", "shape": [4294967296, 4294967296, 4294967296], "data_offsets": [0, 0]}})",
          0),
      BundleError);
  CHECK_THROWS_AS(count_in(R"({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [8, 4]}})", 16),
                  BundleError);
  CHECK_THROWS_AS(count_in(R"({"a": 1})", 16), BundleError);
  CHECK_THROWS_AS(tensors_of(safetensors("{}", 0, std::uint64_t{1} << 63), "weights"), BundleError);
  CHECK_THROWS_AS(tensors_of({}, "weights"), BundleError);
}

}  // namespace
}  // namespace star
