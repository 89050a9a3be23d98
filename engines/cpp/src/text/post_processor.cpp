#include "text/post_processor.hpp"

#include "errors.hpp"
#include "text/fields.hpp"
#include "text/utf8.hpp"

namespace star {
namespace {

void append_special(const Fields& part, const Fields& piece, PostProcessor& result) {
  const Fields known = part.object("special_tokens");
  const std::string& id = piece.text("id");
  if (!known.has(id)) {
    throw BundleError(piece.path("id") + ": " + utf8::repr(id) + " is not in special_tokens");
  }
  const Fields special = known.object(id);
  for (const auto& token : special.array("ids")) result.push_back(number_value(token, special.path("ids")));
}

PostProcessor read_template(const Fields& part) {
  PostProcessor result;
  for (const auto& value : part.array("single")) {
    const Fields piece(value, part.path("single"));
    if (piece.has("SpecialToken")) {
      append_special(part, piece.object("SpecialToken"), result);
      continue;
    }
    const Fields text = piece.object("Sequence");
    if (text.text("id") != "A") text.refuse("id", "A");
    result.push_back(std::nullopt);
  }
  return result;
}

PostProcessor read_sequence(const Fields& part) {
  PostProcessor result{std::nullopt};
  bool found = false;
  for (const auto& value : part.array("processors")) {
    const Fields step(value, part.path("processors"));
    if (step.text("type") == "ByteLevel") continue;
    if (step.text("type") != "TemplateProcessing" || found) {
      refuse_part(part.path() + ": the post-processor " + utf8::repr(step.text("type")) + " in a sequence",
                  "ByteLevel and one TemplateProcessing");
    }
    result = read_template(step);
    found = true;
  }
  return result;
}

}  // namespace

PostProcessor read_post_processor(const nlohmann::json& value, const std::string& path) {
  if (value.is_null()) return {std::nullopt};
  const Fields part(value, path);
  const std::string& type = part.text("type");
  if (type == "ByteLevel") return {std::nullopt};  // says where tokens stand in the text
  if (type == "TemplateProcessing") return read_template(part);
  if (type == "Sequence") return read_sequence(part);
  refuse_part(path + ": the post-processor " + utf8::repr(type), "Sequence, ByteLevel or TemplateProcessing");
}

}  // namespace star
