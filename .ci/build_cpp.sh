#!/usr/bin/env bash
# Builds engines/cpp in build/cpp and runs those of its tests that need no Python, on a bare Debian 12 too.
# Where it cannot be built, a line says why, and that is no failure. Usage: .ci/build_cpp.sh [CMAKE_OPTION ...]
set -euo pipefail
cd "$(dirname "$0")/.."
build=${STAR_EXPORT_CPP:-build/cpp}
.ci/cpp_needs.sh || exit 0
cmake -S engines/cpp -B "$build" -G Ninja -DONNXRUNTIME_INCLUDE="$PWD/build/onnxruntime-headers/usr/include/onnxruntime" "$@"
cmake --build "$build"
"$build/star_tests"
echo "not run: TensorRT itself, whose headers are in no registry; its session runs on a fake"
