#include "text/post_processor.hpp"

#include "bundle/json.hpp"
#include "errors.hpp"
#include "text/unsupported.hpp"
#include "text/utf8.hpp"

namespace star {
namespace {

void append_special(const Object& part, const Object& piece, PostProcessor& result) {
  const Value id = piece.get("id");
  const auto special = Object(part.get("special_tokens")).given(id.text());
  if (!special) throw BundleError(id.path() + ": " + utf8::repr(id.text()) + " is not in special_tokens");
  for (const Value& token : Object(*special).get("ids").items()) result.push_back(token.token_id());
}

PostProcessor read_template(const Object& part) {
  PostProcessor result;
  for (const Value& value : part.get("single").items()) {
    const Object piece(value);
    if (const auto special = piece.given("SpecialToken")) {
      append_special(part, Object(*special), result);
      continue;
    }
    const Value id = Object(piece.get("Sequence")).get("id");
    if (id.text() != "A") id.refuse_kind("A");
    result.push_back(std::nullopt);
  }
  return result;
}

PostProcessor read_sequence(const Object& part) {
  PostProcessor result{std::nullopt};
  bool found = false;
  for (const Value& value : part.get("processors").items()) {
    const Object step(value);
    const std::string& type = step.get("type").text();
    if (type == "ByteLevel") continue;
    if (type != "TemplateProcessing" || found) {
      refuse_part(part.path() + ": the post-processor " + utf8::repr(type) + " in a sequence",
                  "ByteLevel and one TemplateProcessing");
    }
    result = read_template(step);
    found = true;
  }
  return result;
}

}  // namespace

PostProcessor read_post_processor(const Value& value) {
  const Object part(value);
  const std::string& type = part.get("type").text();
  if (type == "ByteLevel") return {std::nullopt};  // says where tokens stand in the text
  if (type == "TemplateProcessing") return read_template(part);
  if (type == "Sequence") return read_sequence(part);
  refuse_part(part.path() + ": the post-processor " + utf8::repr(type),
              "Sequence, ByteLevel or TemplateProcessing");
}

}  // namespace star
