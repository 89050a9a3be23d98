// What a library that was built without TensorRT's headers says.
#include "errors.hpp"
#include "session/tensorrt.hpp"

#ifndef STAR_TENSORRT
namespace star {

std::string_view tensorrt_backend() { return ""; }

std::unique_ptr<Session> open_tensorrt(const Bundle&, const TensorRTOptions&) {
  throw PlatformError(
      "this library was built without TensorRT; configure it with -DTENSORRT_ROOT and "
      "-DCUDA_INCLUDE, or use backend onnxruntime");
}

}  // namespace star
#endif
