/* A bundle made by `star-export build`, for every language that calls C: pictures and a prompt in, text out.
 *
 *   star_pipeline* pipeline = NULL;
 *   star_error* error = star_pipeline_open("bundle", NULL, &pipeline);
 *   if (error != NULL) { puts(star_error_message(error)); star_error_free(error); return 2; }
 *
 * Handles are opaque, texts are UTF-8, and nothing is thrown. What can fail returns an error to free, or
 * NULL. A struct begins with its size, so that later versions can add members; all zeros but that are the
 * defaults. */
#ifndef STAR_C_H
#define STAR_C_H

#include <stddef.h>
#include <stdint.h>

#include "star/export.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Grows when something is added; what is there keeps its meaning. */
#define STAR_ABI_VERSION 1

/* The version of the library that runs, to compare with the header's. */
STAR_API uint32_t star_abi_version(void);

typedef struct star_pipeline star_pipeline;
typedef struct star_result star_result;
typedef struct star_error star_error;
typedef struct star_cancellation star_cancellation;

typedef enum star_error_kind {
  STAR_ERROR_SETTINGS = 1,   /* an option is out of range */
  STAR_ERROR_BUNDLE = 2,     /* the bundle is missing, damaged, unsafe or of another version */
  STAR_ERROR_INPUT = 3,      /* a picture or the prompt cannot be used with this bundle */
  STAR_ERROR_PLATFORM = 4,   /* something that this machine lacks */
  STAR_ERROR_NON_FINITE = 5, /* the model's logits are NaN or infinite */
  STAR_ERROR_CANCELLED = 6,  /* the caller ended it */
  STAR_ERROR_OTHER = 7       /* a fault of this library, or no memory */
} star_error_kind;

STAR_API star_error_kind star_error_kind_of(const star_error* error);
STAR_API const char* star_error_message(const star_error* error);
STAR_API void star_error_free(star_error* error);

typedef struct star_options {
  size_t size;                /* sizeof(star_options) */
  const char* backend;        /* "onnxruntime" by default */
  const char* onnxruntime;    /* the library to load; $STAR_ONNXRUNTIME or the system's by default */
  const char* plugin_library; /* of TensorRT engines that were built with one */
  int32_t threads;            /* of the CPU; all cores by default */
  int32_t verify;             /* not 0: hash every file first, the weights too */
} star_options;

/* Reads a bundle and loads its graphs; `options` may be NULL. */
STAR_API star_error* star_pipeline_open(const char* folder, const star_options* options,
                                        star_pipeline** pipeline);
STAR_API void star_pipeline_close(star_pipeline* pipeline);

/* A JPEG or PNG: the path of a file, or, where that is NULL, the bytes of one. */
typedef struct star_image {
  const char* path;
  const void* data;
  size_t size;
} star_image;

/* A piece of text as it comes, not terminated by NUL. Any value but 0 ends the answer, which is cancelled
 * then. */
typedef int (*star_on_text)(void* context, const char* text, size_t size);

typedef struct star_settings {
  size_t size;         /* sizeof(star_settings) */
  const int64_t* keep; /* one number: visual tokens of all pictures after the last stage; else one for each */
  size_t keep_count;   /* 0: the bundle's own */
  int64_t max_new_tokens;  /* 0: what the caches hold */
  double temperature;      /* 0 is greedy */
  double top_p;            /* 0: 1.0, all tokens */
  const uint64_t* seed;    /* NULL: a fresh one every time */
  const char* const* stop; /* strings that end the answer and are no part of it */
  size_t stop_count;
  const char* const* end_tokens; /* tokens that end it, besides the bundle's own */
  size_t end_token_count;
  star_on_text on_text;                  /* may be NULL; called in the caller's thread */
  void* context;                         /* passed on to on_text */
  const star_cancellation* cancellation; /* may be NULL */
} star_settings;

/* Answers a question about pictures; `settings` may be NULL. Any thread may ask; one answer is generated at a
 * time, the others wait. */
STAR_API star_error* star_pipeline_generate(star_pipeline* pipeline, const star_image* images,
                                            size_t image_count, const char* prompt,
                                            const star_settings* settings, star_result** result);

/* Ends the generations that it was given to before their next tokens; any thread may ask for that, at any
 * time. It outlives them. */
STAR_API star_error* star_cancellation_new(star_cancellation** cancellation);
STAR_API void star_cancellation_cancel(star_cancellation* cancellation);
STAR_API void star_cancellation_free(star_cancellation* cancellation);

/* Milliseconds of one generation. */
typedef struct star_timings {
  double vision;        /* the pictures' features */
  double prefill;       /* from there to the first token */
  double total;         /* all of it, with streaming */
  const double* decode; /* each further token */
  size_t decode_count;
} star_timings;

/* What they point to is valid until the result is freed; counts may be NULL. */
STAR_API const char* star_result_text(const star_result* result, size_t* size); /* also terminated by NUL */
STAR_API const char* star_result_finish_reason(const star_result* result);      /* "stop" or "length" */
STAR_API const int64_t* star_result_token_ids(const star_result* result, size_t* count);
STAR_API const int64_t* star_result_stage1_indices(const star_result* result, size_t* count);
STAR_API const int64_t* star_result_stage2_indices(const star_result* result, size_t* count);
STAR_API int64_t star_result_prompt_tokens(const star_result* result);
STAR_API star_timings star_result_timings(const star_result* result);
STAR_API void star_result_free(star_result* result);

#ifdef __cplusplus
}
#endif

#endif
