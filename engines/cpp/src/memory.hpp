// Memory that files and requests ask for.
#pragma once

#include <new>
#include <stdexcept>
#include <string>
#include <string_view>

namespace star {

// What `work` gives, or an error of this kind where that needs more memory than there is.
template <typename Kind, typename Work>
auto within_memory(std::string_view what, std::string_view remedy, Work work) {
  try {
    return work();
  } catch (const std::bad_alloc&) {
  } catch (const std::length_error&) {
  }
  throw Kind(std::string(what) + " needs more memory than there is; " + std::string(remedy));
}

}  // namespace star
