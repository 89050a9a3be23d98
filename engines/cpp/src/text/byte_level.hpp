// The printable characters that byte-level vocabularies write bytes as.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace star {

std::string bytes_as_letters(std::string_view bytes);

// The bytes that letters stand for; none if one of them stands for no byte.
std::optional<std::string> letters_as_bytes(std::string_view letters);

}  // namespace star
