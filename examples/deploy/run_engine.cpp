/* Runs an engine that mmcompile built, with TensorRT's C++ API and nothing of ours but the plugin.
 *
 *   g++ -std=c++17 run_engine.cpp -o run_engine -I$TENSORRT/include -I$CUDA/include \
 *       -L$TENSORRT/lib -L$CUDA/lib64 -lnvinfer -lcudart
 *   ./run_engine out/engine.plan out/libmmcompile_plugin.so input_ids=1x128 attention_mask=1x128
 *
 * Every input is filled with ones. Prints the time per call and the first values of every output.
 */
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

namespace {

class Logger : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* text) noexcept override {
    if (severity <= Severity::kWARNING) std::cerr << text << '\n';
  }
};

[[noreturn]] void fail(const std::string& what) {
  std::cerr << "run_engine: " << what << '\n';
  std::exit(1);
}

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) fail(std::string(what) + ": " + cudaGetErrorString(status));
}

size_t bytes_of(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kINT64:
      return 8;
    case nvinfer1::DataType::kFLOAT:
    case nvinfer1::DataType::kINT32:
      return 4;
    case nvinfer1::DataType::kHALF:
    case nvinfer1::DataType::kBF16:
      return 2;
    default:
      return 1;
  }
}

size_t elements(const nvinfer1::Dims& shape) {
  size_t count = 1;
  for (int axis = 0; axis < shape.nbDims; ++axis) {
    if (shape.d[axis] < 0) fail("a shape is not known before the run");
    count *= static_cast<size_t>(shape.d[axis]);
  }
  return count;
}

nvinfer1::Dims parse_shape(const std::string& text) {
  nvinfer1::Dims shape{};
  std::istringstream stream(text);
  for (std::string size; std::getline(stream, size, 'x');) {
    shape.d[shape.nbDims++] = std::atoll(size.c_str());
  }
  return shape;
}

std::vector<char> ones(nvinfer1::DataType type, size_t count) {
  std::vector<char> content(count * bytes_of(type));
  const float one = 1.0F;
  const uint16_t half_one = 0x3C00, bfloat_one = 0x3F80; /* 1.0 in fp16 and in bf16 */
  const int64_t integer_one = 1;                         /* little-endian: fits every width */
  const void* value = &integer_one;
  if (type == nvinfer1::DataType::kFLOAT) value = &one;
  if (type == nvinfer1::DataType::kHALF) value = &half_one;
  if (type == nvinfer1::DataType::kBF16) value = &bfloat_one;
  for (size_t i = 0; i < count; ++i) {
    std::copy_n(static_cast<const char*>(value), bytes_of(type), &content[i * bytes_of(type)]);
  }
  return content;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) fail("usage: run_engine ENGINE PLUGIN_LIBRARY [INPUT=1x128 …]");
  std::map<std::string, nvinfer1::Dims> shapes;
  for (int i = 3; i < argc; ++i) {
    const std::string text = argv[i];
    const size_t split = text.rfind('=');
    shapes[text.substr(0, split)] = parse_shape(text.substr(split + 1));
  }
  std::ifstream file(argv[1], std::ios::binary);
  const std::vector<char> plan{std::istreambuf_iterator<char>(file), {}};
  if (plan.empty()) fail(std::string("cannot read ") + argv[1]);

  /* The library first: deserializing looks its creator up in TensorRT's registry. */
  Logger logger;
  const std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(logger));
  if (!runtime) fail("TensorRT gives no runtime");
  if (!runtime->getPluginRegistry().loadLibrary(argv[2])) fail("cannot load the plugin library");
  const std::unique_ptr<nvinfer1::ICudaEngine> engine(
      runtime->deserializeCudaEngine(plan.data(), plan.size()));
  if (!engine) fail("TensorRT rejects the engine");
  const std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());
  if (!context) fail("no execution context: too little GPU memory?");

  cudaStream_t stream = nullptr;
  check(cudaStreamCreate(&stream), "cudaStreamCreate");
  std::map<std::string, void*> buffers;
  for (const bool inputs : {true, false}) { /* outputs have shapes once all inputs have */
    for (int i = 0; i < engine->getNbIOTensors(); ++i) {
      const char* name = engine->getIOTensorName(i);
      const bool is_input = engine->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
      if (is_input != inputs) continue;
      if (is_input && shapes.count(name) && !context->setInputShape(name, shapes[name])) {
        fail(std::string("the engine was not built for this shape of ") + name);
      }
      const nvinfer1::DataType type = engine->getTensorDataType(name);
      const size_t count = elements(context->getTensorShape(name));
      check(cudaMalloc(&buffers[name], count * bytes_of(type) + 1), "cudaMalloc");
      if (is_input) {
        const std::vector<char> content = ones(type, count);
        check(cudaMemcpy(buffers[name], content.data(), content.size(), cudaMemcpyHostToDevice),
              "cudaMemcpy");
      }
      if (!context->setTensorAddress(name, buffers[name])) fail("setTensorAddress");
    }
  }

  constexpr int kRuns = 50;
  if (!context->enqueueV3(stream)) fail("enqueueV3"); /* warm-up */
  check(cudaStreamSynchronize(stream), "the first run");
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < kRuns; ++i) {
    if (!context->enqueueV3(stream)) fail("enqueueV3");
  }
  check(cudaStreamSynchronize(stream), "a run");
  const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
  std::cout << time.count() / kRuns << " ms per call\n";

  for (const auto& [name, buffer] : buffers) {
    if (engine->getTensorIOMode(name.c_str()) == nvinfer1::TensorIOMode::kINPUT) continue;
    if (engine->getTensorDataType(name.c_str()) == nvinfer1::DataType::kFLOAT) {
      std::vector<float> first(
          std::min<size_t>(4, elements(context->getTensorShape(name.c_str()))));
      check(cudaMemcpy(first.data(), buffer, first.size() * sizeof(float), cudaMemcpyDeviceToHost),
            "cudaMemcpy");
      std::cout << name << ':';
      for (const float value : first) std::cout << ' ' << value;
      std::cout << '\n';
    }
    check(cudaFree(buffer), "cudaFree");
  }
  check(cudaStreamDestroy(stream), "cudaStreamDestroy");
  return 0;
}
