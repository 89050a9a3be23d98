// The weights of a bundle on the GPU, once for all engines that take them as inputs.
//
// TensorRT keeps constants inside each engine: prefill and decode would then hold the decoder's weights
// twice, on disk and on the GPU. As inputs they are bound like any other tensor.
#pragma once

#include <future>
#include <memory>
#include <optional>
#include <vector>

#include "bundle/bundle.hpp"
#include "session/engine_facts.hpp"
#include "session/mapped.hpp"
#include "session/tensorrt/cuda.hpp"
#include "session/tensorrt/engine.hpp"

namespace star {

// Tensors of weights files in one allocation, filled while the caller does other things.
class SharedWeights {
 public:
  // Throws BundleError if a file is damaged, PlatformError if the GPU has no room.
  explicit SharedWeights(const std::vector<std::filesystem::path>& files);
  ~SharedWeights();

  const std::vector<MappedTensor>& tensors() const { return tensors_; }
  // Where each tensor is; waits until all are there. Throws PlatformError if the GPU refuses a copy.
  const Addresses& addresses() const;

 private:
  void fill() const;

  std::vector<MappedFile> files_;
  std::vector<MappedTensor> tensors_;
  std::optional<DeviceBuffer> buffer_;
  Addresses addresses_;
  std::shared_future<void> filled_;
};

// The weights that a bundle's engines take as inputs, on their way to the GPU or there already: sessions of
// one process share them. Null where they are constants inside each engine.
std::shared_ptr<const SharedWeights> shared_weights(const Bundle& bundle, const EngineFacts& facts);

}  // namespace star
