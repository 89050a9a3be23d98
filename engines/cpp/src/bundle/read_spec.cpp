#include "bundle/read_spec.hpp"

#include <algorithm>
#include <cctype>

namespace star {
namespace {

// Upper bounds are far above any model, and below what exhausts memory.
constexpr std::int64_t kCount = std::int64_t{1} << 31, kLayers = 1024, kSide = 1 << 14;

std::int64_t read_count(const Value& value) { return value.integer(1, kCount); }
std::int64_t read_side(const Value& value) { return value.integer(1, kSide); }
std::int64_t read_token_id(const Value& value) { return value.integer(0, kCount); }
double read_share(const Value& value) {
  return value.json().is_number() && value.json().get<double>() == 1.0 ? 1.0 : value.number(0, 1);
}

template <typename Read>
auto read_or_null(const std::optional<Value>& value, Read read) -> std::optional<decltype(read(*value))> {
  if (!value || value->is_null()) return std::nullopt;
  return read(*value);
}

template <typename Read>
auto read_all(const Value& value, Read read) {
  std::vector<std::decay_t<decltype(read(value))>> all;
  for (const Value& item : value.items()) all.push_back(read(item));
  return all;
}

std::string read_one_of(const Value& value, const std::vector<std::string>& names) {
  if (std::find(names.begin(), names.end(), value.text()) == names.end()) value.refuse("invalid enum value");
  return value.text();
}

VisionSpec read_vision(const Value& value) {
  Object object(value);
  VisionSpec vision;
  vision.model_type = object.get("model_type").text();
  vision.image_size = read_side(object.get("image_size"));
  vision.patch_size = read_side(object.get("patch_size"));
  vision.num_layers = object.get("num_layers").integer(1, kLayers);
  vision.feature_layers =
      read_all(object.get("feature_layers"), [](const Value& item) { return item.integer(0, kLayers); });
  vision.has_cls = object.get("has_cls").boolean();
  vision.feature_select = read_one_of(object.get("feature_select"), {"default", "full"});
  for (const char* key : {"hidden_size", "intermediate_size", "num_heads"}) read_count(object.get(key));
  object.get("hidden_act").text();
  object.get("layer_norm_eps").number(0, 1);
  object.done();
  return vision;
}

TextSpec read_text(const Value& value) {
  Object object(value);
  TextSpec text;
  text.hidden_size = read_count(object.get("hidden_size"));
  text.num_layers = object.get("num_layers").integer(1, kLayers);
  text.num_heads = read_count(object.get("num_heads"));
  text.num_kv_heads = read_count(object.get("num_kv_heads"));
  text.head_dim = read_count(object.get("head_dim"));
  text.vocab_size = read_count(object.get("vocab_size"));
  text.max_position_embeddings = read_count(object.get("max_position_embeddings"));
  text.sliding_window = read_or_null(object.get("sliding_window"), read_count);
  read_count(object.get("intermediate_size"));
  object.get("hidden_act").text();
  object.get("rms_norm_eps").number(0, 1);
  for (const char* key : {"q_bias", "k_bias", "v_bias", "o_bias", "mlp_bias", "tie_word_embeddings"}) {
    object.get(key).boolean();
  }
  object.get("rope_parameters").members();
  object.done();
  return text;
}

std::pair<std::int64_t, std::int64_t> read_pinpoint(const Value& value) {
  const std::vector<Value> pair = value.items();
  if (pair.size() != 2) value.refuse("expected array of length 2");
  return {read_side(pair[0]), read_side(pair[1])};
}

Tiling read_tiling(const Value& value) {
  Object object(value);
  Tiling tiling;
  tiling.pinpoints = read_all(object.get("pinpoints"), read_pinpoint);
  tiling.max_grid = read_or_null(object.get("max_grid"), read_count);
  tiling.several_whole = object.get("several_whole").boolean();
  object.done();
  return tiling;
}

ModelSpec read_model(const Value& value) {
  Object object(value);
  ModelSpec model;
  model.model_type = object.get("model_type").text();
  model.vision = read_vision(object.get("vision"));
  model.text = read_text(object.get("text"));
  object.get("projector_act").text();
  object.get("projector_bias").boolean();
  model.image_token_id = read_token_id(object.get("image_token_id"));
  model.eos_token_ids = read_all(object.get("eos_token_ids"), read_token_id);
  model.tiling = read_or_null(object.get("tiling"), read_tiling);
  object.done();
  return model;
}

bool is_score_name(const std::string& name) {
  const auto is_right = [](unsigned char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-';
  };
  return !name.empty() && name.size() <= 32 && name[0] >= 'a' && name[0] <= 'z' &&
         std::all_of(name.begin(), name.end(), is_right);
}

Stage read_stage(const Value& value) {
  Object object(value);
  Stage stage;
  stage.after_layer = object.get("after_layer").integer(0, kLayers - 1);
  const Value score = object.get("score");
  stage.score = score.text();
  if (!is_score_name(stage.score)) score.refuse("expected str matching regex '^[a-z][a-z0-9-]{0,31}$'");
  stage.tokens = read_count(object.get("tokens"));
  stage.max_tokens = read_count(object.get("max_tokens"));
  stage.share = read_or_null(object.find("share"), read_share);
  stage.mass = read_or_null(object.find("mass"), [](const Value& mass) { return mass.number(0, 1); });
  object.done();
  return stage;
}

ImageLimits read_images(const Value& value) {
  Object object(value);
  ImageLimits images;
  images.max_images = read_count(object.get("max_images"));
  images.max_tiles = read_count(object.get("max_tiles"));
  images.max_image_tokens = read_count(object.get("max_image_tokens"));
  object.done();
  return images;
}

Quantization read_quantization(const Value& value) {
  Object object(value);
  Quantization quantization;
  quantization.type = read_one_of(object.get("type"), {"int4", "uint4", "int8", "uint8"});
  quantization.block = read_count(object.get("block"));
  if (const auto vision = object.find("vision")) quantization.vision = vision->boolean();
  if (const auto embedding = object.find("embedding")) quantization.embedding = embedding->boolean();
  read_or_null(object.find("layers"), [](const Value& layers) {
    return read_all(layers, [](const Value& layer) { return layer.text(); });
  });
  object.done();
  return quantization;
}

}  // namespace

ExportSpec read_spec(const Value& value) {
  Object object(value);
  ExportSpec spec;
  spec.model = read_model(object.get("model"));
  spec.schedule = read_all(object.get("schedule"), read_stage);
  spec.images = read_images(object.get("images"));
  spec.max_text_tokens = read_count(object.get("max_text_tokens"));
  spec.max_new_tokens = read_count(object.get("max_new_tokens"));
  spec.append_tokens = read_count(object.get("append_tokens"));
  spec.dtype = *dtype_named(read_one_of(object.get("dtype"), {"float32", "float16", "bfloat16"}));
  if (const auto layers = object.find("fp32_layers")) {
    read_all(*layers, [](const Value& layer) { return layer.text(); });
  }
  if (const auto proportional = object.find("proportional")) spec.proportional = proportional->boolean();
  spec.quantization = read_or_null(object.find("quantization"), read_quantization);
  if (const auto fixed = object.find("fixed_capacities")) spec.fixed_capacities = fixed->boolean();
  object.done();
  return spec;
}

}  // namespace star
