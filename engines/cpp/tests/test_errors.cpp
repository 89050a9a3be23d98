#include <doctest/doctest.h>

#include "errors.hpp"

TEST_CASE("options in messages are words of the API, or what a front end calls them") {
  const star::SettingsError error(star::option("keep=") + "9 needs " + star::option("prune"));
  CHECK(std::string(error.what()) == "keep=9 needs prune");
  const auto shout = [](const std::string& name) { return "<" + name + ">"; };
  CHECK(star::spelled(error.marked(), shout) == "<keep=>9 needs <prune>");
  CHECK(star::spelled("keep, plain", shout) == "keep, plain");
  const std::string open = star::option("keep").substr(0, 5);  // without its end
  CHECK(star::spelled(open, shout) == open);
}
