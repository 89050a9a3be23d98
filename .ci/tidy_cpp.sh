#!/usr/bin/env bash
# clang-tidy over engines/cpp, with the checks of .clang-tidy. Usage: .ci/tidy_cpp.sh [FILE ...], all files by default.
set -euo pipefail
cd "$(dirname "$0")/.."
build=build/cpp-tidy
.ci/cpp_needs.sh clang clang-tidy || exit 0
# A compile database of clang's own: precompiled headers of GCC, and flags that it alone has, would stop it.
cmake -S engines/cpp -B "$build" -G Ninja -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON -DSTAR_FUZZ=ON \
    -DONNXRUNTIME_INCLUDE="$PWD/build/onnxruntime-headers/usr/include/onnxruntime" > /dev/null
run-clang-tidy -quiet -p "$build" "${@:-engines/cpp/}"
