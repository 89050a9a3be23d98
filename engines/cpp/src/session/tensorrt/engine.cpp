#include "session/tensorrt/engine.hpp"

#include <algorithm>
#include <utility>

#include "errors.hpp"
#include "session/tensorrt/runtime.hpp"

namespace star {
namespace {

std::string type_name(nvinfer1::DataType type) {
  using nvinfer1::DataType;
  switch (type) {
    case DataType::kFLOAT:
      return "FLOAT";
    case DataType::kHALF:
      return "HALF";
    case DataType::kBF16:
      return "BF16";
    case DataType::kINT64:
      return "INT64";
    case DataType::kINT8:
      return "INT8";
    case DataType::kUINT8:
      return "UINT8";
    case DataType::kINT4:
      return "INT4";
    default:
      return "type " + std::to_string(static_cast<int>(type));
  }
}

Shape shape_of(const nvinfer1::Dims& dims) {
  if (dims.nbDims < 0 || dims.nbDims > nvinfer1::Dims::MAX_DIMS) return {-1};  // it does not know the tensor
  return Shape(dims.d, dims.d + dims.nbDims);
}

nvinfer1::Dims dims_of(const Shape& shape) {
  nvinfer1::Dims dims{};
  dims.nbDims = static_cast<std::int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), dims.d);
  return dims;
}

EngineTensors tensors_of(const nvinfer1::ICudaEngine& engine) {
  EngineTensors tensors;
  for (std::int32_t i = 0; i < engine.getNbIOTensors(); ++i) {
    const char* name = engine.getIOTensorName(i);
    EngineTensor& tensor = tensors[name];
    tensor.is_input = engine.getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
    tensor.dtype = type_name(engine.getTensorDataType(name));
    tensor.shape = shape_of(engine.getTensorShape(name));
    const char* alias = tensor.is_input ? nullptr : engine.getAliasedInputTensor(name);
    if (alias != nullptr) tensor.alias = alias;
    tensor.on_host = engine.getTensorLocation(name) == nvinfer1::TensorLocation::kHOST;
  }
  return tensors;
}

std::string stored_type(std::string_view dtype) {
  constexpr std::pair<std::string_view, DType> kNames[] = {
      {"F32", DType::kFloat32}, {"F16", DType::kFloat16}, {"BF16", DType::kBfloat16},
      {"I64", DType::kInt64},   {"I8", DType::kInt8},     {"U8", DType::kUint8}};
  for (const auto& [name, type] : kNames) {
    if (name == dtype) return std::string(tensorrt_name(type));
  }
  return std::string(dtype);
}

// A weight as an engine takes it: where two integers share a byte, the file has the bytes.
EngineWeight as_taken(const MappedTensor& stored, const EngineTensor& by_engine) {
  std::int64_t elements = 1;
  for (const std::int64_t size : by_engine.shape) elements *= size;
  if (by_engine.dtype == "INT4" && stored.shape == Shape{(elements + 1) / 2})
    return {"INT4", by_engine.shape};
  return {stored_type(stored.dtype), stored.shape};
}

#ifdef STAR_TENSORRT_RTX
// TensorRT-RTX's own word on whether an engine file fits this machine.
void check_validity(nvinfer1::IRuntime& runtime, std::span<const std::byte> content,
                    const std::filesystem::path& path, const std::string& command) {
  std::uint64_t diagnostics = 0;
  const auto validity =
      runtime.getEngineValidity(content.data(), static_cast<std::int64_t>(content.size()), &diagnostics);
  if (validity != nvinfer1::EngineValidity::kINVALID) return;  // others run, if slower than one built here
  throw BundleError(path.string() + " does not fit " + std::string(tensorrt_backend()) +
                    " on this GPU (diagnostics " + std::to_string(diagnostics) +
                    "); build the engines again: " + command);
}
#endif

std::unique_ptr<nvinfer1::IExecutionContext> create_context(const LoadedEngine& loaded,
                                                            [[maybe_unused]] bool capture) {
  TensorRTLog& log = tensorrt_log();
  const std::size_t heard = log.heard();
  std::unique_ptr<nvinfer1::IExecutionContext> context;
  const std::unique_ptr<nvinfer1::IRuntimeConfig> config(loaded.engine->createRuntimeConfig());
  if (config) {
    // Graphs of one session never run at once, so that all contexts share one scratch.
    config->setExecutionContextAllocationStrategy(
        nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED);
#ifdef STAR_TENSORRT_RTX
    if (capture) config->setCudaGraphStrategy(nvinfer1::CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE);
#endif
    context.reset(loaded.engine->createExecutionContext(config.get()));
  }
  if (context) return context;
  throw PlatformError(std::string(tensorrt_backend()) + " cannot prepare " + loaded.rules.graph() + ": " +
                      log.first_error(heard));
}

}  // namespace

LoadedEngine load_engine(nvinfer1::IRuntime& runtime, const std::filesystem::path& path, ShapeRules rules,
                         const std::vector<MappedTensor>& weights, const std::string& command) {
  const MappedFile file(path);
#ifdef STAR_TENSORRT_RTX
  check_validity(runtime, file.data(), path, command);
#endif
  TensorRTLog& log = tensorrt_log();
  const std::size_t heard = log.heard();
  std::unique_ptr<nvinfer1::ICudaEngine> engine(
      runtime.deserializeCudaEngine(file.data().data(), file.data().size()));
  if (!engine) {
    throw BundleError(std::string(tensorrt_backend()) + " cannot load " + path.string() + ": " +
                      log.first_error(heard) + "; run: " + command);
  }
  EngineTensors tensors = tensors_of(*engine);
  EngineWeights taken;
  std::vector<std::string> names;
  for (const MappedTensor& weight : weights) {
    const auto tensor = tensors.find(weight.name);
    if (tensor == tensors.end()) continue;
    taken.emplace(weight.name, as_taken(weight, tensor->second));
    names.push_back(weight.name);
  }
  check_engine(tensors, rules.io(), taken, path.string(), command);
  return {std::move(engine), std::move(tensors), std::move(rules), std::move(names)};
}

Execution::Execution(const LoadedEngine& loaded, const Stream& stream, const DeviceBuffer& scratch,
                     const Addresses& weights, bool capture)
    : loaded_(loaded), stream_(stream), capture_(capture), context_(create_context(loaded, capture)) {
#ifdef STAR_TENSORRT_RTX
  capture_ = false;
#endif
  context_->setDeviceMemoryV2(scratch.data(), static_cast<std::int64_t>(scratch.size()));
  heard_ = tensorrt_log().heard();
  for (const std::string& name : loaded.weights) {
    demand(context_->setTensorAddress(name.c_str(), weights.find(name)->second), "the address of " + name);
  }
}

void Execution::run(const Shapes& shapes, const Shapes& outputs, const Addresses& addresses) {
  heard_ = tensorrt_log().heard();
  bind(shapes, outputs, addresses);
  if (capture_ && ran_ && !graph_) try_capture();
  if (graph_) {
    stream_.launch(*graph_);
  } else {
    enqueue();
  }
  ran_ = true;
}

// Tells the context what changed since the last run.
void Execution::bind(const Shapes& shapes, const Shapes& outputs, const Addresses& addresses) {
  if (shapes == shapes_ && addresses == addresses_) return;
  graph_.reset();
  ran_ = false;
  // Until all of the new ones are accepted.
  const Shapes old_shapes = std::exchange(shapes_, {});
  const Addresses old_addresses = std::exchange(addresses_, {});
  for (const auto& [name, address] : addresses) {
    const auto old = old_addresses.find(name);
    if (old != old_addresses.end() && old->second == address) continue;
    demand(context_->setTensorAddress(name.c_str(), address), "the address of " + name);
  }
  for (const auto& [name, shape] : shapes) {
    const auto old = old_shapes.find(name);
    if (old != old_shapes.end() && old->second == shape) continue;
    demand(context_->setInputShape(name.c_str(), dims_of(shape)), "shape " + describe(shape) + " of " + name);
  }
  const char* unknown = "the inputs";
  demand(context_->inferShapes(1, &unknown) == 0, std::string("the shapes of ") + unknown);
  // A longer output would overwrite what lies behind its buffer.
  for (const auto& [name, shape] : outputs) {
    const Shape found = shape_of(context_->getTensorShape(name.c_str()));
    demand(found == shape, describe(shape) + " for output " + name + " and wants " + describe(found));
  }
  shapes_ = shapes;
  addresses_ = addresses;
}

void Execution::enqueue() { demand(context_->enqueueV3(stream_.get()), "to run"); }

// What cannot be captured runs without a CUDA graph from then on.
void Execution::try_capture() {
  try {
    graph_ = stream_.capture([this] { enqueue(); });
  } catch (const PlatformError&) {
    capture_ = false;
  }
}

void Execution::demand(bool accepted, const std::string& what) const {
  if (accepted) return;
  throw PlatformError(std::string(tensorrt_backend()) + " refuses " + what + " (" + loaded_.rules.graph() +
                      "): " + tensorrt_log().first_error(heard_));
}

}  // namespace star
