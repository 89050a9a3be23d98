// One engine file: deserialised, compared with the contract, and run.
#pragma once

#include <NvInferRuntime.h>

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "session/engine_shapes.hpp"
#include "session/mapped.hpp"
#include "session/tensorrt/cuda.hpp"

namespace star {

using Addresses = std::map<std::string, std::byte*, std::less<>>;

// An engine that passed every check.
struct LoadedEngine {
  std::unique_ptr<nvinfer1::ICudaEngine> engine;
  EngineTensors tensors;
  ShapeRules rules;
  std::vector<std::string> weights;  // inputs that are weights

  // Device memory that a run needs for activations, at most.
  std::size_t scratch_bytes() const { return static_cast<std::size_t>(engine->getDeviceMemorySizeV2()); }
};

// Loads an engine file onto the GPU and compares it with the contract; `weights` are what it may also take.
// Throws BundleError, with what TensorRT said if it refuses.
LoadedEngine load_engine(nvinfer1::IRuntime& runtime, const std::filesystem::path& path, ShapeRules rules,
                         const std::vector<MappedTensor>& weights, const std::string& command);

// One execution context: shapes and addresses set, and perhaps a CUDA graph of it.
//
// With full TensorRT the first run after a change of shape or address is an ordinary one, which lets TensorRT
// do what it put off; the second is captured, later ones are replays. TensorRT-RTX captures by itself: a
// graph of ours would keep its generic kernels for ever, while it swaps in kernels for the shape at hand once
// they are compiled.
class Execution {
 public:
  // `scratch` has at least the engine's `scratch_bytes`; the addresses of weights never change. Throws
  // PlatformError if TensorRT cannot make a context.
  Execution(const LoadedEngine& loaded, const Stream& stream, const DeviceBuffer& scratch,
            const Addresses& weights, bool capture);

  // Puts one run on the stream, without waiting for it. `shapes` are of every input, and fit the profile;
  // `outputs` are of every output, as the contract computes them. Throws PlatformError if TensorRT refuses,
  // or disagrees about the shape of an output.
  void run(const Shapes& shapes, const Shapes& outputs, const Addresses& addresses);

 private:
  void bind(const Shapes& shapes, const Shapes& outputs, const Addresses& addresses);
  void enqueue();
  void try_capture();
  void demand(bool accepted, const std::string& what) const;

  const LoadedEngine& loaded_;
  const Stream& stream_;
  bool capture_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  Shapes shapes_;
  Addresses addresses_;
  bool ran_ = false;
  std::optional<CudaGraph> graph_;
  std::size_t heard_ = 0;
};

}  // namespace star
