#include <array>
#include <memory>
#include <new>

#include "errors.hpp"
#include "star/pipeline.hpp"
#include "star_c.h"

struct star_pipeline {
  star::Pipeline pipeline;
};
struct star_result {
  star::Result result;
};
struct star_error {
  star_error_kind kind;
  std::string message;
};
struct star_cancellation {
  std::stop_source source;
};

namespace star {
namespace {

constexpr std::array kKinds{STAR_ERROR_SETTINGS, STAR_ERROR_BUNDLE,     STAR_ERROR_INPUT,
                            STAR_ERROR_PLATFORM, STAR_ERROR_NON_FINITE, STAR_ERROR_CANCELLED};

// Given where there is no memory for another; never freed.
star_error& out_of_memory() noexcept {
  static star_error error{STAR_ERROR_OTHER, "no memory"};  // short enough to need none
  return error;
}

star_error* new_error(star_error_kind kind, const char* message) noexcept {
  try {
    return std::make_unique<star_error>(star_error{kind, message}).release();
  } catch (...) {
    return &out_of_memory();
  }
}

// Runs what may throw, and gives what it threw as a handle.
template <typename Function>
star_error* caught(const Function& function) noexcept {
  try {
    function();
    return nullptr;
  } catch (const Error& error) {
    return new_error(kKinds.at(static_cast<std::size_t>(error.kind())), error.what());
  } catch (const std::bad_alloc&) {
    return &out_of_memory();
  } catch (const std::exception& error) {
    return new_error(STAR_ERROR_OTHER, error.what());
  } catch (...) {
    return new_error(STAR_ERROR_OTHER, "unknown fault");
  }
}

template <typename T>
void require(const T* given, const char* name) {
  if (given == nullptr) throw SettingsError(std::string(name) + " must not be NULL");
}

template <typename Struct>
void require_size(const Struct& given, const char* name) {
  if (given.size < sizeof(Struct)) {
    throw SettingsError(std::string(name) + ".size is " + std::to_string(given.size) + ", expected sizeof(" +
                        name + "), which is " + std::to_string(sizeof(Struct)) +
                        "; set it, or compile with this header");
  }
}

Options options_of(const star_options* given) {
  Options options;
  if (given == nullptr) return options;
  require_size(*given, "star_options");
  if (given->backend != nullptr) options.backend = given->backend;
  if (given->onnxruntime != nullptr) options.onnxruntime = given->onnxruntime;
  if (given->plugin_library != nullptr) options.plugin_library = given->plugin_library;
  if (given->threads != 0) options.threads = given->threads;
  options.verify = given->verify != 0;
  return options;
}

std::vector<Image> images_of(const star_image* given, std::size_t count) {
  if (count > 0) require(given, "images");
  std::vector<Image> images;
  for (const star_image& image : std::span(given, count)) {
    if (image.path != nullptr) {
      images.emplace_back(std::filesystem::path(image.path));
    } else {
      require(image.data, "star_image.data without a path");
      images.emplace_back(std::span(static_cast<const std::uint8_t*>(image.data), image.size));
    }
  }
  return images;
}

std::vector<std::string> texts_of(const char* const* given, std::size_t count, const char* name) {
  if (count > 0) require(given, name);
  std::vector<std::string> texts;
  for (const char* text : std::span(given, count)) {
    require(text, name);
    texts.emplace_back(text);
  }
  return texts;
}

Settings settings_of(const star_settings& given) {
  require_size(given, "star_settings");
  Settings settings;
  if (given.keep_count > 0) {
    require(given.keep, "star_settings.keep");
    const std::span keep(given.keep, given.keep_count);
    settings.keep = keep.size() == 1 ? Keep(keep.front()) : Keep(std::vector(keep.begin(), keep.end()));
  }
  if (given.max_new_tokens != 0) settings.max_new_tokens = given.max_new_tokens;
  settings.sampling.temperature = given.temperature;
  if (given.top_p != 0.0) settings.sampling.top_p = given.top_p;
  if (given.seed != nullptr) settings.sampling.seed = *given.seed;
  settings.stop = texts_of(given.stop, given.stop_count, "star_settings.stop");
  settings.end_tokens = texts_of(given.end_tokens, given.end_token_count, "star_settings.end_tokens");
  return settings;
}

OnText on_text_of(const star_settings& given) {
  if (given.on_text == nullptr) return {};
  return [give = given.on_text, context = given.context](std::string_view piece) {
    if (give(context, piece.data(), piece.size()) != 0) {
      throw Error(ErrorKind::kCancelled, "the answer was cancelled before its end");
    }
  };
}

template <typename T>
const T* counted(const std::vector<T>& values, std::size_t* count) noexcept {
  if (count != nullptr) *count = values.size();
  return values.data();
}

}  // namespace
}  // namespace star

uint32_t star_abi_version() { return STAR_ABI_VERSION; }

star_error_kind star_error_kind_of(const star_error* error) { return error->kind; }
const char* star_error_message(const star_error* error) { return error->message.c_str(); }
void star_error_free(star_error* error) {
  if (error != &star::out_of_memory()) std::unique_ptr<star_error>{error};
}

star_error* star_pipeline_open(const char* folder, const star_options* options, star_pipeline** pipeline) {
  return star::caught([&] {
    star::require(folder, "folder");
    star::require(pipeline, "pipeline");
    auto opened = std::make_unique<star_pipeline>(
        star_pipeline{star::Pipeline::open(folder, star::options_of(options))});
    *pipeline = opened.release();
  });
}
void star_pipeline_close(star_pipeline* pipeline) { std::unique_ptr<star_pipeline>{pipeline}; }

star_error* star_pipeline_generate(star_pipeline* pipeline, const star_image* images, size_t image_count,
                                   const char* prompt, const star_settings* settings, star_result** result) {
  return star::caught([&] {
    star::require(pipeline, "pipeline");
    star::require(prompt, "prompt");
    star::require(result, "result");
    star_settings defaults{};
    defaults.size = sizeof(star_settings);
    const star_settings& given = settings == nullptr ? defaults : *settings;
    const std::stop_token stop =
        given.cancellation == nullptr ? std::stop_token() : given.cancellation->source.get_token();
    auto answer = std::make_unique<star_result>(
        star_result{pipeline->pipeline.generate(star::images_of(images, image_count), prompt,
                                                star::settings_of(given), star::on_text_of(given), stop)});
    *result = answer.release();
  });
}

star_error* star_cancellation_new(star_cancellation** cancellation) {
  return star::caught([&] {
    star::require(cancellation, "cancellation");
    *cancellation = std::make_unique<star_cancellation>().release();
  });
}
void star_cancellation_cancel(star_cancellation* cancellation) { cancellation->source.request_stop(); }
void star_cancellation_free(star_cancellation* cancellation) {
  std::unique_ptr<star_cancellation>{cancellation};
}

const char* star_result_text(const star_result* result, size_t* size) {
  if (size != nullptr) *size = result->result.text.size();
  return result->result.text.c_str();
}
const char* star_result_finish_reason(const star_result* result) {
  return result->result.finish_reason.c_str();
}
const int64_t* star_result_token_ids(const star_result* result, size_t* count) {
  return star::counted(result->result.token_ids, count);
}
const int64_t* star_result_stage1_indices(const star_result* result, size_t* count) {
  return star::counted(result->result.stage1_indices, count);
}
const int64_t* star_result_stage2_indices(const star_result* result, size_t* count) {
  return star::counted(result->result.stage2_indices, count);
}
int64_t star_result_prompt_tokens(const star_result* result) { return result->result.prompt_tokens; }
star_timings star_result_timings(const star_result* result) {
  const star::Timings& spent = result->result.timings_ms;
  return {spent.vision, spent.prefill, spent.total, spent.decode.data(), spent.decode.size()};
}
void star_result_free(star_result* result) { std::unique_ptr<star_result>{result}; }
