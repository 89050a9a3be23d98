// Asks libstar_export_plugins.so what TensorRT would ask it, with TensorRT's headers but without TensorRT.
// Usage: plugin_host LIBRARY; prints what is wrong, exits with the number of failures.
#include <NvInfer.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <string>

using namespace nvinfer1;

static int failures = 0;
#define CHECK(condition) \
  if (!(condition)) std::printf("line %d: %s\n", __LINE__, #condition), ++failures

struct Logger : ILogger {
  std::string last;
  void log(Severity, AsciiChar const* message) noexcept override { last = message; }
} logger;

struct Finder : ILoggerFinder {
  ILogger* findLogger() override { return &logger; }
} finder;

struct Dimension : IDimensionExpr {};  // only its address is looked at
struct Builder : IExprBuilder {};

static void check_types(IPluginV3OneBuild& build) {
  for (DataType row : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16, DataType::kINT8}) {
    DataType const types[] = {row, DataType::kFLOAT, DataType::kINT64, row, DataType::kINT64};
    DynamicPluginTensorDesc tensors[5] = {};
    for (int i = 0; i < 5; ++i) tensors[i].desc.type = types[i];
    CHECK(build.supportsFormatCombination(0, tensors, 3, 2) == (row != DataType::kINT8));
    for (int i = 1; i < 5; ++i) {
      CHECK(build.supportsFormatCombination(i, tensors, 3, 2));
      tensors[i].desc.type = DataType::kINT32;
      CHECK(!build.supportsFormatCombination(i, tensors, 3, 2));
      tensors[i].desc.type = types[i];
      tensors[i].desc.format = TensorFormat::kCHW32;
      CHECK(!build.supportsFormatCombination(i, tensors, 3, 2));
      tensors[i].desc.format = TensorFormat::kLINEAR;
    }
    DataType outputs[2] = {};
    CHECK(build.getOutputDataTypes(outputs, 2, types, 3) == 0);
    CHECK(outputs[0] == row && outputs[1] == DataType::kINT64);
  }
}

static void check_shapes(IPluginV3OneBuild& build) {
  Dimension batch, rows, channels, k;
  Builder builder;
  DimsExprs inputs[3] = {{3, {&batch, &rows, &channels}}, {2, {&batch, &rows}}, {1, {&k}}}, outputs[2] = {};
  CHECK(build.getOutputShapes(inputs, 3, nullptr, 0, outputs, 2, builder) == 0);
  CHECK(outputs[0].nbDims == 3 && outputs[1].nbDims == 2);
  CHECK(outputs[0].d[0] == &batch && outputs[0].d[1] == &k && outputs[0].d[2] == &channels);
  CHECK(outputs[1].d[0] == &batch && outputs[1].d[1] == &k);
  inputs[0].nbDims = 2;
  CHECK(build.getOutputShapes(inputs, 3, nullptr, 0, outputs, 2, builder) != 0);
  CHECK(logger.last == "star::TopKGather: expected x [B, N, C], scores [B, N] and slots [k]");
}

static void check_runtime(IPluginV3OneRuntime& runtime) {
  PluginTensorDesc inputs[3] = {}, outputs[2] = {};
  inputs[0].dims = {3, {1, 576, 1024}};
  inputs[0].type = DataType::kHALF;
  inputs[2].dims = {1, {577}};
  CHECK(runtime.onShapeChange(inputs, 3, outputs, 2) != 0);
  CHECK(logger.last == "star::TopKGather: cannot keep 577 of 576 rows");
  inputs[2].dims.d[0] = 576;
  CHECK(runtime.onShapeChange(inputs, 3, outputs, 2) == 0);
  CHECK(runtime.getFieldsToSerialize()->nbFields == 0);
  if (dlopen("libcuda.so.1", RTLD_NOW) != nullptr) return;  // the GPU tests launch the kernel
  void const* sources[3] = {};
  void* targets[2] = {};
  CHECK(runtime.enqueue(inputs, outputs, sources, targets, nullptr, nullptr) != 0);
  CHECK(logger.last == "star::TopKGather: no NVIDIA driver: libcuda.so.1 does not load");
}

int main(int, char** arguments) {
  void* library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return std::printf("%s\n", dlerror()), 1;
  reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(&finder);
  int32_t count = 0;
  auto get = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"));
  auto* creator = static_cast<IPluginCreatorV3One*>(get(count)[0]);
  CHECK(count == 1 && !std::strcmp(creator->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE"));
  CHECK(!std::strcmp(creator->getPluginName(), "TopKGather"));
  CHECK(!std::strcmp(creator->getPluginVersion(), "1"));
  CHECK(!std::strcmp(creator->getPluginNamespace(), "star"));
  CHECK(creator->getFieldNames()->nbFields == 0);
  IPluginV3* first = creator->createPlugin("node", creator->getFieldNames(), TensorRTPhase::kBUILD);
  IPluginV3* plugin = first->clone();
  delete first;
  auto core = static_cast<IPluginV3OneCore*>(plugin->getCapabilityInterface(PluginCapabilityType::kCORE));
  auto build = static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
  auto runtime = static_cast<IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  CHECK(!std::strcmp(core->getPluginName(), "TopKGather") && build->getNbOutputs() == 2);
  check_types(*build);
  check_shapes(*build);
  check_runtime(*runtime);
  delete runtime->attachToContext(nullptr);
  delete plugin;
  return failures;
}
