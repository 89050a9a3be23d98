// The command line of star_run, in the words of `star-export run`.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "star/pipeline.hpp"

namespace star::tools {

struct Arguments {
  std::string folder;
  std::vector<Image> images;
  std::string prompt;
  Options options;
  Settings settings;
  bool json = false;
  bool bench = false;
  int repeats = 5;  // measured rounds of --bench
};

// What a command line asks for; nothing where it only asked for help or the version, which are printed.
// Throws an Error of kind kSettings for one that cannot be read.
std::optional<Arguments> read_arguments(int argc, const char* const* argv);

// An error's message with a flag in the place of every option.
std::string with_flags(const Error& error);

}  // namespace star::tools
