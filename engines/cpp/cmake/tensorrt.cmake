# TensorRT or TensorRT-RTX, whichever's headers lie in TENSORRT_ROOT, as a backend of star_objects.
include(CheckCXXSourceCompiles)
set(CMAKE_REQUIRED_INCLUDES ${TENSORRT_ROOT}/include ${CUDA_INCLUDE})
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
check_cxx_source_compiles("#include <NvInferRuntime.h>
  int main() { return nvinfer1::Dims::MAX_DIMS + NV_TENSORRT_MAJOR; }" STAR_TENSORRT)
if(NOT STAR_TENSORRT)
  message(FATAL_ERROR "no TensorRT 10 or newer in TENSORRT_ROOT, or no CUDA in CUDA_INCLUDE")
endif()
check_cxx_source_compiles("#include <NvInferRuntime.h>
  bool check(nvinfer1::IRuntimeConfig& config) {
    return config.setCudaGraphStrategy(nvinfer1::CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE);
  }" STAR_TENSORRT_RTX)
target_sources(star_objects PRIVATE ${TENSORRT_SOURCES})
target_include_directories(star_objects SYSTEM PRIVATE ${TENSORRT_ROOT}/include ${CUDA_INCLUDE})
target_compile_definitions(star_objects PRIVATE STAR_TENSORRT $<$<BOOL:${STAR_TENSORRT_RTX}>:STAR_TENSORRT_RTX>)
