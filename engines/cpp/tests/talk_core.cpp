// Answers requests about bundles, sampling and steps. Arrays travel in files.
#include <cstring>
#include <fstream>

#include "bundle/bundle.hpp"
#include "pipeline/budgets.hpp"
#include "pipeline/device_dtype.hpp"
#include "pipeline/steps.hpp"
#include "session/onnxruntime.hpp"
#include "talk.hpp"

namespace {

using star::Json;

template <typename T>
std::vector<T> read_array(const std::string& path) {
  const std::string content = star::read_file(path, std::size_t{1} << 30);
  std::vector<T> values(content.size() / sizeof(T));
  std::memcpy(values.data(), content.data(), values.size() * sizeof(T));
  return values;
}

void write_bytes(const std::string& path, const void* data, std::size_t size) {
  std::ofstream(path, std::ios::binary)
      .write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
}

std::optional<star::Keep> read_keep(const Json& json) {
  if (json.is_null()) return std::nullopt;
  if (json.is_array()) return json.get<std::vector<std::int64_t>>();
  return json.get<std::int64_t>();
}

Json keep_json(const std::optional<star::Keep>& keep) {
  if (!keep) return nullptr;
  return std::visit([](const auto& value) { return Json(value); }, *keep);
}

star::Sampling read_sampling(const Json& json) {
  star::Sampling sampling{json.value("temperature", 0.0), json.value("top_p", 1.0), {}};
  if (json.contains("seed")) sampling.seed = json["seed"].get<std::uint64_t>();
  return sampling;
}

star::ImageInputs read_image(const Json& json) {
  star::ImageInputs image;
  if (json.contains("pixels")) image.pixels = read_array<float>(json["pixels"]);
  image.tiles = json.value("tiles", 1);
  image.tokens = json["tokens"];
  image.newlines = json["newlines"];
  image.packed_index = json.value("packed_index", std::vector<std::int64_t>{});
  image.packed_weights = json.value("packed_weights", std::vector<float>{});
  return image;
}

std::vector<star::ImageInputs> read_images(const Json& json) {
  std::vector<star::ImageInputs> images;
  for (const Json& image : json) images.push_back(read_image(image));
  return images;
}

class Talker {
 public:
  Json answer(const Json& asked) {
    const std::string what = asked["what"];
    if (what == "open") return open(asked);
    if (what == "load") return load(asked);
    if (what == "budgets") return budgets(asked);
    if (what == "sample") return sample(asked);
    if (what == "round") return round(asked);
    if (what == "run") return run(asked);
    return {{"error", "unknown"}};
  }

 private:
  Json open(const Json& asked) {
    bundle_ = star::open_bundle(asked["folder"].get<std::string>(), asked.value("verify", false));
    return {{"capacities", bundle_->spec().capacities()}};
  }

  Json load(const Json& asked) {
    steps_.reset();
    session_.reset();
    star::OnnxRuntimeOptions options;
    options.library = asked.value("library", "");
    options.exact = asked.value("exact", false);
    if (asked.contains("threads")) options.threads = asked["threads"].get<int>();
    session_ = star::open_onnxruntime(*bundle_, options);
    steps_.emplace(*session_);
    return Json::object();
  }

  Json budgets(const Json& asked) const {
    const star::ExportSpec& spec = bundle_->spec();
    Json answers = Json::array();
    for (const Json& question : asked["questions"]) {
      try {
        const std::vector<star::ImageInputs> images = read_images(question["images"]);
        const auto keep = star::budget(spec, read_keep(question["keep"]), images);
        const std::int64_t visual = question["visual"];
        answers.push_back({{"keep", keep_json(keep)},
                           {"entering", star::entering(spec, images, keep)},
                           {"budgets", spec.budgets(keep, visual)},
                           {"lengths", spec.lengths(question["text"], visual, keep)}});
      } catch (const star::Error& error) {
        answers.push_back({{"error", error.what()}});
      }
    }
    return {{"answers", answers}};
  }

  static Json sample(const Json& asked) {
    const std::vector<float> logits = read_array<float>(asked["logits"]);
    const std::size_t vocabulary = asked["vocabulary"];
    Json answers = Json::array();
    std::size_t first = 0;
    for (const Json& settings : asked["settings"]) {
      star::Sampler sampler(read_sampling(settings));
      Json tokens = Json::array();
      for (int row = 0; row < settings["rows"].get<int>(); ++row, first += vocabulary) {
        const std::span<const float> values = std::span(logits).subspan(first, vocabulary);
        const std::int64_t best = star::argmax(values);
        tokens.push_back(best < 0 || sampler.greedy() ? best : sampler.draw(values));
      }
      answers.push_back(tokens);
    }
    return {{"tokens", answers}};
  }

  static Json round(const Json& asked) {
    const std::vector<float> values = read_array<float>(asked["values"]);
    const auto dtype = star::dtype_named(asked["dtype"].get<std::string>());
    const star::HostArray rounded =
        star::to_device_dtype(values, {static_cast<std::int64_t>(values.size())}, dtype.value());
    write_bytes(asked["to"], rounded.data.data(), rounded.data.size());
    return Json::object();
  }

  Json run(const Json& asked) {
    const std::vector<star::ImageInputs> images = read_images(asked["images"]);
    const star::TokenizedPrompt prompt{asked["input_ids"], asked["image_positions"],
                                       asked["query_positions"]};
    const auto keep = read_keep(asked["keep"]);
    const std::int64_t count = asked["new_tokens"];
    star::Sampler sampler(read_sampling(asked["sampling"]));
    const auto caches = steps_->own_caches(prompt, keep, count);
    const std::vector<star::VisionOutput> visions = steps_->encode_images(images, keep);
    star::DecodeState state = steps_->prefill(prompt, visions, caches, keep);
    std::vector<std::int64_t> tokens;
    std::vector<float> logits;
    while (true) {
      const std::vector<float> last = state.logits();
      logits.insert(logits.end(), last.begin(), last.end());
      tokens.push_back(state.next_token(sampler));
      if (static_cast<std::int64_t>(tokens.size()) == count) break;
      steps_->decode(state, {&tokens.back(), 1});
    }
    write_bytes(asked["logits"], logits.data(), logits.size() * sizeof(float));
    Json indices = Json::array();
    for (const star::VisionOutput& vision : visions) indices.push_back(vision.num_tokens);
    if (visions.size() == 1) indices = visions.front().indices();
    return {{"tokens", tokens},
            {"indices", indices},
            {"stages", state.stage_positions()},
            {"lengths", state.lengths()},
            {"capacities", caches->capacities()}};
  }

  std::optional<star::Bundle> bundle_;
  std::unique_ptr<star::Session> session_;
  std::optional<star::Steps> steps_;
};

}  // namespace

int main() {
  Talker talker;
  star::talk([&](const auto& request) { return talker.answer(request); });
}
