#include "session/tensorrt/weights.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>
#include <set>

namespace star {
namespace {

// Pinned memory, twice: one piece is read from the disk while the other goes to the GPU.
constexpr std::size_t kPieceBytes = std::size_t{32} << 20;

std::size_t aligned(std::size_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

struct Piece {
  PinnedBuffer memory{kPieceBytes};
  Event copied;
};

}  // namespace

SharedWeights::SharedWeights(const std::vector<std::filesystem::path>& files) {
  std::size_t total = 0;
  for (const std::filesystem::path& path : files) {
    files_.emplace_back(path);
    for (MappedTensor& tensor : tensors_of(files_.back().data(), path)) {
      total += aligned(tensor.data.size());
      tensors_.push_back(std::move(tensor));
    }
  }
  // In the order of their bytes, as the disk reads best.
  std::stable_sort(tensors_.begin(), tensors_.end(), [](const MappedTensor& a, const MappedTensor& b) {
    return std::less<>()(a.data.data(), b.data.data());
  });
  buffer_.emplace(total, "the weights");
  std::byte* next = buffer_->data();
  for (const MappedTensor& tensor : tensors_) {
    addresses_[tensor.name] = next;
    next += aligned(tensor.data.size());
  }
  filled_ = std::async(std::launch::async, [this] { fill(); }).share();
}

SharedWeights::~SharedWeights() {
  if (filled_.valid()) filled_.wait();  // nobody frees memory under a copy
}

const Addresses& SharedWeights::addresses() const {
  filled_.get();
  return addresses_;
}

void SharedWeights::fill() const {
  const Stream stream;
  const std::array<Piece, 2> pieces;
  std::size_t turn = 0;
  for (const MappedTensor& tensor : tensors_) {
    std::byte* const address = addresses_.find(tensor.name)->second;
    for (std::size_t start = 0; start < tensor.data.size(); start += kPieceBytes) {
      const Piece& piece = pieces[turn++ % pieces.size()];
      const std::size_t size = std::min(kPieceBytes, tensor.data.size() - start);
      piece.copied.synchronize();
      std::memcpy(piece.memory.data(), tensor.data.data() + start, size);
      stream.upload(address + start, piece.memory.data(), size);
      stream.record(piece.copied);
    }
  }
  stream.synchronize();
}

std::shared_ptr<const SharedWeights> shared_weights(const Bundle& bundle, const EngineFacts& facts) {
  if (facts.weights_files.empty()) return nullptr;
  static std::mutex mutex;
  static std::map<std::set<std::string>, std::weak_ptr<const SharedWeights>> in_use;  // by the files' hashes
  std::set<std::string> key;
  std::vector<std::filesystem::path> files;
  for (const auto& [name, sha256] : facts.weights_files) {
    key.insert(sha256);
    files.push_back(bundle.path(name));
  }
  const std::scoped_lock lock(mutex);
  std::shared_ptr<const SharedWeights> weights = in_use[key].lock();
  if (!weights) in_use[key] = weights = std::make_shared<const SharedWeights>(files);
  return weights;
}

}  // namespace star
