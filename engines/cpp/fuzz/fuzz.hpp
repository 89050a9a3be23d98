// What the fuzzers share. Whatever is read, the only answers are a value and an error for the user.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "errors.hpp"

namespace star::fuzz {

template <typename Work>
void refusing(Work work) {
  try {
    work();
  } catch (const Error&) {  // Anything else ends the fuzzer.
  }
}

inline std::string_view text(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

}  // namespace star::fuzz
