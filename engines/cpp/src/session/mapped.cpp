#include "session/mapped.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <limits>
#include <utility>

#include "bundle/dtypes.hpp"
#include "bundle/json.hpp"
#include "errors.hpp"

namespace star {
namespace {

// Bytes before a safetensors header, which say how long it is.
constexpr std::size_t kLength = 8;

// A file descriptor until the end of the block.
class Descriptor {
 public:
  explicit Descriptor(const std::filesystem::path& path)
      : number_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {}
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int number() const { return number_; }

 private:
  int number_;
};

constexpr std::size_t itemsize(std::string_view dtype) {
  if (dtype == "F32") return 4;
  if (dtype == "F16" || dtype == "BF16") return 2;
  if (dtype == "I64") return 8;
  return 1;
}

MappedTensor read_tensor(const std::string& name, const Value& value, std::span<const std::byte> data) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  Object object(value);
  MappedTensor tensor{name, object.get("dtype").text(), {}, {}};
  for (const Value& size : object.get("shape").items()) tensor.shape.push_back(size.integer(0, kMost));
  const Value offsets = object.get("data_offsets");
  const std::vector<Value> pair = offsets.items();
  if (pair.size() != 2) offsets.refuse("expected array of length 2");
  const auto first = static_cast<std::uint64_t>(pair[0].integer(0, kMost));
  const auto end = static_cast<std::uint64_t>(pair[1].integer(0, kMost));
  if (first > end || end > data.size() || bytes_of(itemsize(tensor.dtype), tensor.shape) != end - first) {
    throw BundleError(name + " has not the bytes of its shape");
  }
  tensor.data = data.subspan(first, end - first);
  if (reinterpret_cast<std::uintptr_t>(tensor.data.data()) % itemsize(tensor.dtype) != 0) {
    throw BundleError(name + " does not begin at a multiple of its elements' size");
  }
  return tensor;
}

std::vector<MappedTensor> read_tensors(std::span<const std::byte> file) {
  if (file.size() < kLength) throw BundleError("it ends before its header");
  std::uint64_t length = 0;
  for (std::size_t i = kLength; i-- > 0;) length = length << 8 | std::to_integer<std::uint64_t>(file[i]);
  const std::span<const std::byte> rest = file.subspan(kLength);
  if (length > rest.size()) throw BundleError("it ends inside its header");
  const auto header = rest.first(length);
  const Json entries = parse_json({reinterpret_cast<const char*>(header.data()), header.size()});
  std::vector<MappedTensor> tensors;
  for (const auto& [name, entry] : Value(entries, "").members()) {
    if (name != "__metadata__") tensors.push_back(read_tensor(name, entry, rest.subspan(length)));
  }
  return tensors;
}

}  // namespace

MappedFile::MappedFile(const std::filesystem::path& path) {
  const Descriptor file(path);
  struct stat status{};
  if (file.number() < 0 || ::fstat(file.number(), &status) != 0) {
    throw BundleError(path.string() + " cannot be read; copy or build the bundle again");
  }
  const auto size = static_cast<std::size_t>(status.st_size);
  if (size == 0) return;
  void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.number(), 0);
  if (address == MAP_FAILED) {
    throw BundleError(path.string() + " cannot be mapped: " + std::strerror(errno));
  }
  data_ = {static_cast<const std::byte*>(address), size};
}

MappedFile::~MappedFile() {
  if (!data_.empty()) ::munmap(const_cast<std::byte*>(data_.data()), data_.size());
}

MappedFile::MappedFile(MappedFile&& other) noexcept : data_(std::exchange(other.data_, {})) {}

std::vector<MappedTensor> tensors_of(std::span<const std::byte> file, const std::filesystem::path& path) {
  try {
    return read_tensors(file);
  } catch (const BundleError& error) {
    throw BundleError(path.string() + " is no weights file (" + error.what() +
                      "); copy or build the bundle again");
  }
}

}  // namespace star
