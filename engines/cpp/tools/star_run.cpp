// A bundle's answers on the command line: what `star-export run` does, without Python.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <new>
#include <nlohmann/json.hpp>
#include <numeric>
#include <sstream>

#include "arguments.hpp"

namespace star::tools {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kCouldNotRun = 2, kInterrupted = 130;

// Whoever read stdout has gone.
struct OutputClosed {};

void print(std::string_view text) {
  std::cout << text << std::flush;
  if (!std::cout) throw OutputClosed{};
}

// As Python's json.dumps(ensure_ascii=False, indent=2).
void print_json(const Json& json) { print(json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n"); }

Json json_of(const Result& result) {
  const Timings& spent = result.timings_ms;
  return {{"text", result.text},
          {"token_ids", result.token_ids},
          {"finish_reason", result.finish_reason},
          {"stage1_indices", result.stage1_indices},
          {"stage2_indices", result.stage2_indices},
          {"prompt_tokens", result.prompt_tokens},
          {"timings_ms",
           {{"vision", spent.vision},
            {"prefill", spent.prefill},
            {"decode", spent.decode},
            {"total", spent.total}}}};
}

// Where the time of an answer went.
void print_summary(const Result& result) {
  const Timings& spent = result.timings_ms;
  std::fprintf(stderr, "%zu -> %zu visual tokens, vision %.0f ms, prefill %.0f ms",
               result.stage1_indices.size(), result.stage2_indices.size(), spent.vision, spent.prefill);
  if (!spent.decode.empty()) {
    const double sum = std::accumulate(spent.decode.begin(), spent.decode.end(), 0.0);
    std::fprintf(stderr, ", %.1f ms per token", sum / static_cast<double>(spent.decode.size()));
  }
  std::fputc('\n', stderr);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

// Time to first token, from picture file and prompt on, and time of each further token.
void measure(Pipeline& pipeline, const Arguments& asked) {
  std::vector<double> first, decode;
  std::size_t tokens = 0;
  for (int round = 0; round <= asked.repeats; ++round) {
    const auto start = std::chrono::steady_clock::now();
    const Result result = pipeline.generate(asked.images, asked.prompt, asked.settings);
    const std::chrono::duration<double, std::milli> whole = std::chrono::steady_clock::now() - start;
    if (round == 0) continue;  // warms up
    const std::vector<double>& laps = result.timings_ms.decode;
    first.push_back(whole.count() - std::accumulate(laps.begin(), laps.end(), 0.0));
    decode.insert(decode.end(), laps.begin(), laps.end());
    tokens = result.token_ids.size();
  }
  const Json decode_ms = decode.empty() ? Json() : Json(median(decode));
  if (asked.json) {
    print_json({{"repeats", asked.repeats},
                {"tokens", tokens},
                {"ttft_ms", median(first)},
                {"decode_ms", decode_ms}});
    return;
  }
  std::ostringstream text;
  text.precision(1);
  text << std::fixed << "TTFT " << median(first) << " ms";
  if (!decode.empty()) text << ", " << median(decode) << " ms per token";
  text << " (medians of " << asked.repeats << ", " << tokens << " tokens each)\n";
  print(text.str());
}

void run(const Arguments& asked) {
  Pipeline pipeline = Pipeline::open(asked.folder, asked.options);
  if (asked.bench) return measure(pipeline, asked);
  const Result result =
      pipeline.generate(asked.images, asked.prompt, asked.settings, asked.json ? OnText() : OnText(print));
  if (asked.json) return print_json(json_of(result));
  print("\n");
  print_summary(result);
}

int fail(const std::string& reason) {
  std::istringstream words(reason);
  std::string line = "error:";
  for (std::string word; words >> word;) line += " " + word;  // one line, whatever a library said
  std::cerr << line << std::endl;
  return kCouldNotRun;
}

extern "C" void interrupted(int) {
  constexpr std::string_view kText = "interrupted\n";
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, kText.data(), kText.size());
  ::_exit(kInterrupted);
}

}  // namespace

int main(int argc, const char* const* argv) {
  std::signal(SIGINT, interrupted);
  std::signal(SIGPIPE, SIG_IGN);
  try {
    if (const std::optional<Arguments> asked = read_arguments(argc, argv)) run(*asked);
    return 0;
  } catch (const Error& error) {
    return fail(with_flags(error));
  } catch (const OutputClosed&) {
    return kCouldNotRun;
  } catch (const std::bad_alloc&) {
    return fail("not enough memory; close other programs or use a smaller model");
  } catch (const std::exception& error) {
    return fail(std::string("unexpected: ") + error.what() +
                "; this is a fault of star-export: please report it");
  }
}

}  // namespace star::tools

int main(int argc, char** argv) { return star::tools::main(argc, argv); }
