// The weights of a bundle in host memory: the files themselves, mapped once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace star {

// A file in the system's cache, read-only.
class MappedFile {
 public:
  // Throws BundleError if it cannot be read.
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  MappedFile& operator=(MappedFile&&) = delete;

  std::span<const std::byte> data() const { return data_; }

 private:
  std::span<const std::byte> data_;
};

// One tensor of a safetensors file.
struct MappedTensor {
  std::string name;
  std::string dtype;  // as safetensors calls it
  std::vector<std::int64_t> shape;
  std::span<const std::byte> data;
};

// The tensors of a safetensors file, where they lie. Throws BundleError if it is damaged.
std::vector<MappedTensor> tensors_of(std::span<const std::byte> file, const std::filesystem::path& path);

}  // namespace star
