#include "text/tokenizer.hpp"

#include <limits>
#include <utility>

#include "bundle/json.hpp"
#include "errors.hpp"
#include "memory.hpp"
#include "text/added_tokens.hpp"
#include "text/bpe.hpp"
#include "text/decoder.hpp"
#include "text/normalizer.hpp"
#include "text/post_processor.hpp"
#include "text/pre_tokenizer.hpp"
#include "text/unsupported.hpp"
#include "text/utf8.hpp"

namespace star {
namespace {

constexpr std::size_t kLargestFile = std::size_t{1} << 28;

// Both would change ids; a build leaves them out.
void require_plain(const Object& file) {
  for (const char* key : {"truncation", "padding"}) {
    if (file.given(key)) refuse_part(key, "none");
  }
  if (const auto version = file.given("version"); version && version->text() != "1.0") {
    version->refuse_kind("1.0");
  }
}

}  // namespace

struct Tokenizer::Parts {
  explicit Parts(const Object& file) : model(Object(file.get("model"))) {
    if (const auto part = file.given("normalizer")) normalizer = read_normalizer(*part);
    if (const auto part = file.given("pre_tokenizer")) pre_tokenizer = read_pre_tokenizer(*part);
    if (const auto part = file.given("post_processor")) post_processor = read_post_processor(*part);
    if (const auto part = file.given("decoder")) decoder = read_decoder(*part);
    added = AddedTokens(file.given("added_tokens"), model, normalizer);
    require_plain(file);
  }

  std::vector<std::uint32_t> encode(std::string_view text) const {
    Pieces pieces = added.cut(text, normalizer);
    pre_tokenizer(pieces);
    std::vector<std::uint32_t> ids;
    for (const Piece& piece : pieces) {
      piece.token ? ids.push_back(*piece.token) : model.encode(piece.text, ids);
    }
    return ids;
  }

  // A token as the decoder takes it.
  const std::string* token(std::int64_t id) const {
    if (id < 0 || id > std::numeric_limits<std::uint32_t>::max()) return nullptr;
    const AddedToken* found = added.token(static_cast<std::uint32_t>(id));
    return found != nullptr ? &found->written : model.token(static_cast<std::uint32_t>(id));
  }

  Bpe model;
  Normalizer normalizer = [](Piece&) {};
  PreTokenizer pre_tokenizer = [](Pieces&) {};
  PostProcessor post_processor{std::nullopt};
  AddedTokens added;
  Decoder decoder;  // none: tokens with spaces between them
};

Tokenizer Tokenizer::open(const std::filesystem::path& path) {
  std::string content;
  try {
    content = read_file(path, kLargestFile);
  } catch (const BundleError&) {
    throw BundleError(path.string() + " is damaged: it cannot be read; build the bundle again");
  }
  return parse(content, path.string());
}

Tokenizer Tokenizer::parse(std::string_view content, const std::string& path) {
  try {
    const Json json = parse_json(content);
    return within_memory<BundleError>(
        "it", "free some", [&] { return Tokenizer(std::make_shared<const Parts>(Object(Value(json, "")))); });
  } catch (const Unsupported& error) {
    throw BundleError(path + " cannot be used without Python: " + error.what() +
                      "; run the bundle with star-export run");
  } catch (const Error& error) {
    throw BundleError(path + " is damaged: " + error.what() + "; build the bundle again");
  }
}

std::vector<std::int64_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  if (!utf8::is_valid(text)) {
    throw InputError("the prompt is not valid Unicode: it holds bytes that are no UTF-8; leave them out");
  }
  const auto ids =
      within_memory<InputError>("the prompt", "shorten it", [&] { return parts_->encode(text); });
  if (!add_special_tokens) return {ids.begin(), ids.end()};
  std::vector<std::int64_t> result;
  for (const auto& special : parts_->post_processor) {
    if (special) {
      result.push_back(*special);
    } else {
      result.insert(result.end(), ids.begin(), ids.end());
    }
  }
  return result;
}

std::string Tokenizer::decode(std::span<const std::int64_t> ids, bool skip_special_tokens) const {
  std::vector<std::string> tokens;
  for (const std::int64_t id : ids) {
    const std::string* token = parts_->token(id);
    if (token == nullptr || (skip_special_tokens && parts_->added.is_special(*token))) continue;
    if (!parts_->decoder && !tokens.empty()) tokens.emplace_back(" ");
    tokens.push_back(*token);
  }
  if (parts_->decoder) parts_->decoder(tokens);
  std::string text;
  for (const std::string& token : tokens) text += token;
  return text;
}

std::optional<std::int64_t> Tokenizer::token_to_id(std::string_view token) const {
  const auto added = parts_->added.find(token);
  const auto found = added ? added : parts_->model.find(token);
  return found ? std::optional<std::int64_t>(*found) : std::nullopt;
}

std::optional<std::string> Tokenizer::id_to_token(std::int64_t id) const {
  const std::string* token = parts_->token(id);
  return token != nullptr ? std::optional(*token) : std::nullopt;
}

bool Tokenizer::is_special(std::int64_t id) const {
  if (id < 0 || id > std::numeric_limits<std::uint32_t>::max()) return false;
  const AddedToken* token = parts_->added.token(static_cast<std::uint32_t>(id));
  return token != nullptr && token->special;
}

}  // namespace star
