#include <doctest/doctest.h>

#include <string>

#include "errors.hpp"
#include "session/engine_shapes.hpp"
#include "session/tensorrt.hpp"

namespace star {
namespace {

GraphSpec small_graph() {
  GraphSpec io;
  io.inputs = {{"ids", DType::kInt64, {1, "S"}, false},
               {"slots", DType::kInt64, {"N2"}, true},
               {"places", DType::kInt64, {1, "V"}, false},
               {"past", DType::kFloat16, {1, 2, "L1", 8}, false}};
  io.outputs = {{"kept", DType::kInt64, {1, "S - V + N2"}, false},
                {"present", DType::kFloat16, {1, 2, "L1", 8}, false}};
  io.aliases = {{"present", "past"}};
  return io;
}

EngineTensors small_engine() {
  return {{"ids", {true, "INT64", {1, -1}, "", false}},
          {"slots", {true, "INT64", {-1}, "", false}},
          {"places", {true, "INT64", {1, -1}, "", false}},
          {"past", {true, "HALF", {1, 2, 64, 8}, "", false}},
          {"kept", {false, "INT64", {1, -1}, "", false}},
          {"present", {false, "HALF", {1, 2, 64, 8}, "past", false}}};
}

ShapeRules small_rules() {
  return {"prefill",
          small_graph(),
          {{"ids", {{1, 2}, {1, 40}, {1, 50}}},
           {"slots", {{1}, {8}, {10}}},
           {"places", {{1, 1}, {1, 20}, {1, 30}}},
           {"past", {{1, 2, 64, 8}, {1, 2, 64, 8}, {1, 2, 64, 8}}}},
          "build again"};
}

Shapes small_shapes() {
  return {{"ids", {1, 40}}, {"slots", {8}}, {"places", {1, 20}}, {"past", {1, 2, 64, 8}}};
}

template <typename Call>
std::string failure_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST_CASE("shapes of outputs follow from those of inputs") {
  const ShapeRules rules = small_rules();
  const Shapes outputs = rules.output_shapes(rules.check(small_shapes()));
  CHECK(outputs.at("kept") == Shape{1, 28});
  CHECK(outputs.at("present") == Shape{1, 2, 64, 8});
  CHECK(rules.largest(small_graph().outputs.front()) == (50 - 1 + 10) * 8);
  CHECK(rules.largest(small_graph().outputs.back()) == 2 * 64 * 8 * 2);
}

TEST_CASE("shapes that an engine does not take are refused") {
  const ShapeRules rules = small_rules();
  const auto with = [&](const std::string& name, const Shape& shape) {
    Shapes shapes = small_shapes();
    shapes[name] = shape;
    return failure_of([&] { rules.check(shapes); });
  };
  CHECK(with("ids", {1, 51}) ==
        "prefill: ids has shape (1, 51), the engine takes (1, 2) to (1, 50); for others, build the engines "
        "again: build again");
  CHECK(with("slots", {0}) ==
        "prefill: slots has shape (0,), the engine takes (1,) to (10,); for others, build the engines again: "
        "build again");
  CHECK(with("ids", {2, 40}) == "prefill: ids must be (1, 'S'), got (2, 40)");
  CHECK(with("places", {20}) == "prefill: places must be (1, 'V'), got (20,)");
  CHECK(with("other", {1}) == "prefill takes no other");
  CHECK(failure_of([&] { rules.check({}); }) == "prefill takes ids, which is not given");
}

TEST_CASE("engines that are not the contract's are refused") {
  const auto with = [](auto change) {
    EngineTensors found = small_engine();
    change(found);
    return failure_of(
        [&] { check_engine(found, small_graph(), {{"w", {"INT4", {4, 4}}}}, "e", "build again"); });
  };
  const EngineTensor weight{true, "INT4", {4, 4}, "", false};
  const auto ending = [](const std::string& fault) {
    return "e " + fault + "; build the engines again: build again";
  };
  CHECK(with([&](EngineTensors& found) { found["w"] = weight; }).empty());
  CHECK(with([](EngineTensors&) {}) == ending("lacks w"));
  CHECK(with([&](EngineTensors& found) { found["a"] = weight; }) == ending("has a, the contract has not"));
  CHECK(with([](EngineTensors& found) { found["ids"].dtype = "INT32"; }) ==
        ending("has ids in INT32, the contract says INT64"));
  CHECK(with([](EngineTensors& found) { found["ids"].is_input = false; }) == ending("has ids as an output"));
  CHECK(with([](EngineTensors& found) { found["present"].alias = ""; }) ==
        ending("writes present in place of None, not of past"));
  CHECK(with([](EngineTensors& found) { found["past"].shape = {1, 4, 64, 8}; }) ==
        ending("has past as (1, 4, 64, 8), the contract says (1, 2, 'L1', 8)"));
}

TEST_CASE("without TensorRT's headers there is no backend") {
  if (!tensorrt_backend().empty()) return;
  CHECK_THROWS_AS(open_tensorrt(Bundle{}), PlatformError);
}

}  // namespace
}  // namespace star
