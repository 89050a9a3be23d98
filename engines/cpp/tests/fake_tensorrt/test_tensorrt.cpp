// The TensorRT session on a fake TensorRT and a fake GPU, which compute with ONNX Runtime: whole answers must
// be those of the ONNX Runtime session, bit for bit. STAR_FAKE_BUNDLE names a bundle whose engines are the
// fake's (tests/cpp/test_tensorrt.py makes some); without one there is nothing to test.
#include <dlfcn.h>
#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <random>

#include "bundle/bundle.hpp"
#include "errors.hpp"
#include "fake_gpu.hpp"
#include "pipeline/steps.hpp"
#include "session/engine_facts.hpp"
#include "session/onnxruntime.hpp"
#include "session/tensorrt.hpp"

namespace star {
namespace {

const char* bundle_folder() {
  const char* folder = std::getenv("STAR_FAKE_BUNDLE");
  if (folder == nullptr) MESSAGE("skipped: STAR_FAKE_BUNDLE is not set");
  return folder;
}

std::string backend() { return std::string(tensorrt_backend()); }

FakeGpu& gpu() {
  using Get = FakeGpu* (*)();
  static void* const library = ::dlopen(FAKE_TENSORRT, RTLD_NOW | RTLD_LOCAL);
  REQUIRE(library != nullptr);
  return *reinterpret_cast<Get>(::dlsym(library, "fake_gpu"))();
}

TensorRTOptions fake_options() {
  gpu();
  TensorRTOptions options;
  options.library = options.cuda_library = options.nvrtc_library = FAKE_TENSORRT;
  return options;
}

// A bundle on whose engines' version the fake TensorRT is from now on.
Bundle fake_bundle(const char* folder) {
  Bundle bundle = open_bundle(folder);
  const std::string version = read_facts(bundle, backend()).version;
  std::array<int, 4>& numbers = gpu().tensorrt;
  REQUIRE(std::sscanf(version.c_str(), "%d.%d.%d.%d", &numbers[0], &numbers[1], &numbers[2], &numbers[3]) ==
          4);
  return bundle;
}

std::unique_ptr<Session> open_fake(const Bundle& bundle) { return open_tensorrt(bundle, fake_options()); }

// One setting of the fake until the end of the block.
template <typename T>
class Set {
 public:
  Set(T& setting, T value) : setting_(setting), before_(setting) { setting = value; }
  ~Set() { setting_ = before_; }
  Set(const Set&) = delete;
  Set& operator=(const Set&) = delete;

 private:
  T& setting_;
  T before_;
};

std::string failure_of(const Bundle& bundle) {
  try {
    open_fake(bundle);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

struct Asked {
  ImageInputs image;
  TokenizedPrompt prompt;
  std::int64_t new_tokens;
  Sampling sampling;
};

// A request for the largest picture, of noise, with a text of random tokens.
Asked make_request(const ExportSpec& spec, std::uint32_t seed) {
  std::mt19937 random(seed);
  Asked asked;
  const auto side = static_cast<std::size_t>(spec.model.vision.image_size);
  asked.image.tokens = spec.largest_image();
  asked.image.pixels.resize(3 * side * side);
  for (float& pixel : asked.image.pixels) pixel = static_cast<float>(random() % 512) / 128.0F - 2.0F;
  const std::int64_t visual = spec.entering(asked.image.tokens);
  const auto up_to = [&](std::uint64_t most) { return static_cast<std::int64_t>(random() % most); };
  const std::int64_t before = 1 + up_to(3), after = 2 + up_to(12);
  for (std::int64_t place = 0; place < before + visual + after; ++place) {
    const bool is_visual = place >= before && place < before + visual;
    const auto token = 3 + static_cast<std::int64_t>(random()) % (spec.model.text.vocab_size - 3);
    asked.prompt.input_ids.push_back(is_visual || token == spec.model.image_token_id
                                         ? (is_visual ? spec.model.image_token_id : 3)
                                         : token);
    if (is_visual) asked.prompt.image_positions.push_back(place);
    if (place >= before + visual) asked.prompt.query_positions.push_back(place);
  }
  asked.new_tokens = 4 + up_to(12);
  if (seed % 2 == 1) asked.sampling = {.temperature = 1.0, .top_p = 0.9, .seed = seed};
  return asked;
}

struct Answer {
  std::vector<std::int64_t> tokens, indices;
  std::vector<std::vector<std::int64_t>> stages;
  std::vector<float> logits;
  bool operator==(const Answer&) const = default;
};

Answer answer_of(Steps& steps, const Asked& asked) {
  Answer answer;
  Sampler sampler(asked.sampling);
  const auto caches = steps.own_caches(asked.prompt, std::nullopt, asked.new_tokens);
  const std::vector<VisionOutput> visions = steps.encode_images({&asked.image, 1});
  answer.indices = visions.front().indices();
  DecodeState state = steps.prefill(asked.prompt, visions, caches);
  answer.stages = state.stage_positions();
  while (static_cast<std::int64_t>(answer.tokens.size()) < asked.new_tokens) {
    if (!answer.tokens.empty()) steps.decode(state, {&answer.tokens.back(), 1});
    const std::vector<float> logits = state.logits();
    answer.logits.insert(answer.logits.end(), logits.begin(), logits.end());
    answer.tokens.push_back(state.next_token(sampler));
  }
  return answer;
}

// First of all, since a process has one TensorRT once it is found right.
TEST_CASE("versions are compared before anything else") {
  const char* folder = bundle_folder();
  if (folder == nullptr) return;
  const Bundle bundle = fake_bundle(folder);
  const Set wrong(gpu().tensorrt[0], 9);
  CHECK(
      has(failure_of(bundle), "is of major version 9, this program was built with headers of " + backend()));
  CHECK(gpu().runtimes == 0);
}

TEST_CASE("a device is looked for before a runtime is made") {
  const char* folder = bundle_folder();
  if (folder == nullptr) return;
  const Bundle bundle = fake_bundle(folder);
  {
    const Set none(gpu().devices, 0);
    CHECK(has(failure_of(bundle), "sees no GPU"));
  }
  {
    const Set none(gpu().driver, 0);
    CHECK(has(failure_of(bundle), "has no NVIDIA driver"));
  }
  {
    const Set old(gpu().driver, 12040);
    CHECK(has(failure_of(bundle), "runs CUDA 12.4, this library needs 13"));
  }
  {
    const Set other(gpu().major, 12);
    CHECK(has(failure_of(bundle), "were built for sm89, this GPU is sm129; "));
  }
  CHECK(gpu().runtimes == 0);
  const Set broken(gpu().tensorrt_starts, false);
  CHECK(has(failure_of(bundle), " cannot start: the fake does not start"));
}

TEST_CASE("engines that do not fit are refused") {
  const char* folder = bundle_folder();
  if (folder == nullptr) return;
  const auto changed = [&](auto change) {
    Bundle bundle = fake_bundle(folder);
    change(bundle.manifest.engines[backend()]);
    return failure_of(bundle);
  };
  CHECK(has(changed([](Json& facts) { facts["version"] = "10.15.0.0"; }),
            "built by " + backend() + " 10.15.0.0, this machine has "));
  CHECK(has(changed([](Json& facts) { facts["version"] = "ten"; }), "entry is damaged (version:"));
  CHECK(has(changed([](Json& facts) { facts["colour"] = "red"; }), "entry is damaged (colour: unknown"));
  CHECK(has(changed([](Json& facts) { facts["backend"] = "other"; }), "its files are not those"));
  CHECK(has(changed([](Json& facts) { facts["files"]["decode"] = facts["files"]["prefill"]; }),
            "prefill.engine lacks early_lengths; build the engines again: star-export build"));
  CHECK(has(changed([](Json& facts) { facts["files"]["decode"] = "tokenizer.json"; }), "cannot load"));
  CHECK(has(changed([](Json& facts) { facts["profiles"]["decode"].erase("input_ids"); }),
            "its profiles are not"));
  CHECK(has(changed([](Json& facts) { facts["plugins"] = "library"; }), "give its path with plugin_library"));
  CHECK(has(changed([](Json& facts) { facts["weights_files"]["graphs/decoder.safetensors"] = "00"; }),
            "take their weights from graphs/decoder.safetensors, which is not what they were built with"));
  Bundle bundle = fake_bundle(folder);
  bundle.manifest.engines = Json::object();
  CHECK(has(failure_of(bundle),
            "has no " + backend() + " engines; make them: star-export build --from-bundle"));
#ifdef STAR_TENSORRT_RTX
  {
    const Set other(gpu().fits, false);
    CHECK(has(failure_of(fake_bundle(folder)), "on this GPU (diagnostics 4); build the engines again"));
  }
#endif
  const Set small(gpu().memory, gpu().in_use + 10000);
  CHECK(has(failure_of(fake_bundle(folder)), "the GPU has no room for"));
  CHECK(gpu().in_use == 0);
}

TEST_CASE("answers are those of ONNX Runtime") {
  const char* folder = bundle_folder();
  if (folder == nullptr) return;
  const Bundle bundle = fake_bundle(folder);
  {
    const auto exact = open_onnxruntime(bundle), fake = open_fake(bundle);
    Steps expected(*exact), found(*fake);
    for (std::uint32_t seed = 0; seed < 12; ++seed) {
      CAPTURE(seed);
      const Asked asked = make_request(bundle.spec(), seed);
      const Answer wanted = answer_of(expected, asked), given = answer_of(found, asked);
      CHECK(given.tokens == wanted.tokens);
      CHECK(given.indices == wanted.indices);
      CHECK(given.stages == wanted.stages);
      CHECK(given.logits == wanted.logits);
    }
  }
  CHECK(gpu().in_use == 0);
}

TEST_CASE("a decode step is captured once and replayed, and waits for its token alone") {
  const char* folder = bundle_folder();
  if (folder == nullptr) return;
  const Bundle bundle = fake_bundle(folder);
  const auto session = open_fake(bundle);
  Steps steps(*session);
  const Asked asked = make_request(bundle.spec(), 2);
  Sampler greedy(Sampling{});
  const auto caches = steps.own_caches(asked.prompt, std::nullopt, 10);
  DecodeState state = steps.prefill(asked.prompt, steps.encode_images({&asked.image, 1}), caches);
  FakeGpu before = gpu();
  std::int64_t token = state.next_token(greedy);
  for (int step = 0; step < 8; ++step) {
    const int waited = gpu().waited;
    steps.decode(state, {&token, 1});
    CHECK(gpu().waited == waited);
    token = state.next_token(greedy);
    CHECK(gpu().waited == waited + 1);
  }
  CHECK(gpu().kernels == before.kernels + 9);
  CHECK(gpu().downloaded == before.downloaded + 9 * sizeof(std::int64_t));
#ifdef STAR_TENSORRT_RTX  // captures by itself
  CHECK(gpu().strategies == before.strategies + 1);
  CHECK(gpu().captured == before.captured);
  CHECK(gpu().enqueued == before.enqueued + 8);
#else
  CHECK(gpu().captured == before.captured + 1);
  CHECK(gpu().launched == before.launched + 7);
  CHECK(gpu().enqueued == before.enqueued + 2);
#endif
  CHECK(gpu().contexts == before.contexts + 1);
  CHECK(gpu().allocated == before.allocated);
}

TEST_CASE("what cannot be captured runs without a CUDA graph") {
  const char* folder = bundle_folder();
  if (folder == nullptr) return;
  const Bundle bundle = fake_bundle(folder);
  const Asked asked = make_request(bundle.spec(), 3);
  const auto session = open_fake(bundle);
  Steps steps(*session);
  const Answer captured = answer_of(steps, asked);
  const Set refused(gpu().captures, false);
  const auto other = open_fake(bundle);
  Steps again(*other);
  const int launched = gpu().launched;
  CHECK(answer_of(again, asked) == captured);
  CHECK(gpu().launched == launched);
}

TEST_CASE("without NVRTC greedy tokens are those of logits on the host") {
  const char* folder = bundle_folder();
  if (folder == nullptr) return;
  const Bundle bundle = fake_bundle(folder);
  const Asked asked = make_request(bundle.spec(), 8);
  const auto session = open_fake(bundle);
  Steps steps(*session);
  const Answer answer = answer_of(steps, asked);
  const Set refused(gpu().compiles, false);
  const auto other = open_fake(bundle);
  Steps again(*other);
  const int kernels = gpu().kernels;
  CHECK(answer_of(again, asked) == answer);
  CHECK(gpu().kernels == kernels);
}

TEST_CASE("sessions share weights, and caches of one size a context") {
  const char* folder = bundle_folder();
  if (folder == nullptr) return;
  const Bundle bundle = fake_bundle(folder);
  const bool shared = !read_facts(bundle, backend()).weights_files.empty();
  std::size_t weights = 0;
  for (const auto& path : bundle.weights())
    weights += static_cast<std::size_t>(std::filesystem::file_size(path));
  const auto first = open_fake(bundle);
  const std::size_t uploaded = gpu().uploaded;
  const auto second = open_fake(bundle);
  if (shared) CHECK(gpu().uploaded - uploaded < weights / 2);
  Steps steps(*first), others(*second);
  const Asked asked = make_request(bundle.spec(), 4);
  const Answer answer = answer_of(steps, asked);
  CHECK(answer_of(others, asked) == answer);
  const int contexts = gpu().contexts;
  for (int time = 0; time < 3; ++time) {
    Steps fresh(*first);
    CHECK(answer_of(fresh, asked) == answer);
  }
  CHECK(gpu().contexts <= contexts + 1);
}

TEST_CASE("capacities, sequences and old results") {
  const char* folder = bundle_folder();
  if (folder == nullptr) return;
  const Bundle bundle = fake_bundle(folder);
  const auto session = open_fake(bundle);
  const EngineFacts facts = read_facts(bundle, backend());
  for (const auto& [capacities, engines] : facts.by_capacities)
    CHECK(session->capacities(capacities) == capacities);
  std::vector<std::int64_t> needed(facts.by_capacities.front().first.size(), 1);
  CHECK(session->capacities(needed) == facts.by_capacities.front().first);
  needed.back() = facts.by_capacities.front().first.back() + 1;
  if (facts.by_capacities.size() > 1) CHECK(session->capacities(needed) == facts.by_capacities[1].first);
  CHECK(session->max_batch() == 4);
  CHECK_THROWS_AS(session->allocate_caches(5, bundle.spec().capacities()), SettingsError);
  const auto caches = session->allocate_caches(2, bundle.spec().capacities());
  const HostArray copied = caches->copy(bundle.contract().find(kDecode)->second.caches().front().name);
  CHECK(std::all_of(copied.data.begin(), copied.data.end(), [](std::byte b) { return b == std::byte{0}; }));
  Steps steps(*session);
  const Asked asked = make_request(bundle.spec(), 5);
  const std::vector<VisionOutput> old = steps.encode_images({&asked.image, 1});
  steps.encode_images({&asked.image, 1});
  CHECK_THROWS_AS(std::get<SharedArray>(old.front().features)->copy(), InputError);
  Feeds feeds;
  CHECK_THROWS_AS(session->run(kVision, feeds, nullptr), SettingsError);
}

TEST_CASE("caches and results outlive their session") {
  const char* folder = bundle_folder();
  if (folder == nullptr) return;
  const Bundle bundle = fake_bundle(folder);
  {
    auto session = open_fake(bundle);
    const auto caches = session->allocate_caches(1, bundle.spec().capacities());
    Steps steps(*session);
    const Asked asked = make_request(bundle.spec(), 6);
    const std::vector<VisionOutput> visions = steps.encode_images({&asked.image, 1});
    const HostArray features = std::get<SharedArray>(visions.front().features)->copy();
    session.reset();
    CHECK(std::get<SharedArray>(visions.front().features)->copy().data == features.data);
    caches->zero();
    CHECK(!caches->copy(bundle.contract().find(kDecode)->second.caches().front().name).data.empty());
  }
  CHECK(gpu().in_use == 0);
}

}  // namespace
}  // namespace star
