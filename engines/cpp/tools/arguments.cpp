#include "arguments.hpp"

#include <CLI/CLI.hpp>
#include <charconv>

#include "errors.hpp"

namespace star::tools {
namespace {

constexpr const char* kExamples =
    "\nExamples:\n"
    "  star_run llava-7b --image dog.png --prompt \"What is this?\"\n"
    "  star_run llava-7b --image dog.png --prompt \"Describe it.\" --keep 29 --json\n"
    "  star_run onevision --image dog.png --image cat.png --prompt \"Which is larger?\"\n"
    "\nExit codes: 0 done, 2 could not run, 130 interrupted.";

template <typename T>
std::optional<T> number_in(std::string_view text) {
  T value{};
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failure != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// `64`, of the last stage, or `128,14`, of every one.
Keep parse_keep(const std::string& text) {
  std::vector<std::int64_t> numbers;
  for (std::size_t first = 0; first <= text.size();) {
    const std::size_t end = std::min(text.find(',', first), text.size());
    const auto number = number_in<std::int64_t>(std::string_view(text).substr(first, end - first));
    if (!number) {
      throw SettingsError("--keep: '" + text +
                          "' is no number of visual tokens, nor a list such as 128,14 of " +
                          "one for each stage");
    }
    numbers.push_back(*number);
    first = end + 1;
  }
  return numbers.size() == 1 ? Keep(numbers.front()) : Keep(numbers);
}

std::uint64_t parse_seed(const std::string& text) {
  if (const auto number = number_in<std::int64_t>(text); number && *number < 0) {
    throw SettingsError(option("seed") + " must not be negative, got " + text);
  }
  const auto seed = number_in<std::uint64_t>(text);
  if (!seed) throw SettingsError("--seed: '" + text + "' is no integer below 2^64");
  return *seed;
}

// One value each time it is given: `--image a b` is not two pictures.
template <typename T>
CLI::Option* add_repeated(CLI::App& app, const std::string& names, std::vector<T>& values,
                          const std::string& help) {
  return app.add_option(names, values, help)->expected(1)->take_all()->allow_extra_args(false);
}

// What the library takes in forms of its own.
struct Texts {
  std::vector<std::string> images;
  std::string keep, seed, onnxruntime, plugin_library;
  std::optional<int> threads;
  std::optional<std::int64_t> max_new_tokens;
};

void describe(CLI::App& app, Arguments& asked, Texts& texts) {
  app.set_help_flag("-h,--help", "Show this and exit.");
  app.set_version_flag("--version", "star_run " STAR_VERSION);
  app.footer(kExamples);
  app.add_option("DIR", asked.folder, "A bundle made by `star-export build`.")->required();
  add_repeated(app, "-i,--image", texts.images,
               "A JPEG or PNG file; repeat for more, in the order of their places.")
      ->required();
  app.add_option("-p,--prompt", asked.prompt,
                 "The question, which the pictures open; with <image> for each, the whole prompt as it is.")
      ->required();
  app.add_option("--keep", texts.keep,
                 "Visual tokens of all pictures after the last stage, or 128,14 for every stage.");
  app.add_option("--max-new-tokens", texts.max_new_tokens,
                 "Tokens to generate at most; by default what the caches hold.");
  app.add_option("--temperature", asked.settings.sampling.temperature, "0, the default, is greedy.");
  app.add_option("--top-p", asked.settings.sampling.top_p,
                 "Sample from the most likely tokens that have this probability.");
  app.add_option("--seed", texts.seed, "Makes sampling repeatable.");
  add_repeated(app, "--stop", asked.settings.stop, "End the answer before this text; repeat for more.");
  add_repeated(app, "--end-token", asked.settings.end_tokens,
               "This token ends an answer too, such as <|eot_id|>; repeat for more.");
  app.add_option("--backend", asked.options.backend,
                 "What runs it: onnxruntime; tensorrt or tensorrt-rtx, if built with one.");
  app.add_option("--onnxruntime", texts.onnxruntime,
                 "The ONNX Runtime library, 1.24 or newer; by default $STAR_ONNXRUNTIME, or the system's.");
  app.add_option("--plugin-library", texts.plugin_library,
                 "The shared library, for engines that were built with one.");
  app.add_option("--threads", texts.threads, "CPU threads; all cores by default.")
      ->check(CLI::Range(1, 1 << 20));
  app.add_flag("--verify", asked.options.verify, "Hash the weights before loading.");
  app.add_flag("--json", asked.json, "Print one JSON object and nothing else on stdout.");
  app.add_flag("--bench", asked.bench,
               "Measure instead: medians of --repeats answers, after one to warm up.");
  app.add_option("--repeats", asked.repeats, "Measured rounds of --bench; 5 by default.")
      ->check(CLI::Range(1, 1 << 20));
}

}  // namespace

std::optional<Arguments> read_arguments(int argc, const char* const* argv) {
  Arguments asked;
  Texts texts;
  CLI::App app("Answer a prompt about pictures, streaming the text.", "star_run");
  describe(app, asked, texts);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& shown) {
    app.exit(shown);
    return std::nullopt;
  } catch (const CLI::ParseError& error) {
    throw SettingsError(std::string(error.what()) + "; see star_run --help");
  }
  asked.images.assign(texts.images.begin(), texts.images.end());
  asked.options.onnxruntime = texts.onnxruntime;
  asked.options.plugin_library = texts.plugin_library;
  asked.options.threads = texts.threads;
  asked.settings.max_new_tokens = texts.max_new_tokens;
  if (!texts.keep.empty()) asked.settings.keep = parse_keep(texts.keep);
  if (!texts.seed.empty()) asked.settings.sampling.seed = parse_seed(texts.seed);
  asked.settings.sampling.check();
  return asked;
}

std::string with_flags(const Error& error) {
  return spelled(error.marked(), [](const std::string& name) -> std::string {
    if (name == "prune=False") return "--no-prune";
    if (name == "end_tokens=") return "--end-token ";
    std::string flag = "--" + name;
    std::replace(flag.begin(), flag.end(), '_', '-');
    if (flag.back() == '=') flag.back() = ' ';
    return flag;
  });
}

}  // namespace star::tools
