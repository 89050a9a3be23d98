#!/usr/bin/env bash
# Builds engines/cpp and runs its tests, on a bare Debian 12 too. What it skips, and why, is a line.
# Usage: .ci/test_cpp.sh [PYTHON], whose star_export the answers are compared with.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
build=${STAR_EXPORT_CPP:-build/cpp}
headers=build/onnxruntime-headers
packages=(g++ cmake ninja-build pkgconf nlohmann-json3-dev libpcre2-dev libutf8proc-dev libcli11-dev doctest-dev
          libpng-dev libjpeg62-turbo-dev)

skip() { echo "skipped: $*"; exit 0; }

command -v dpkg-query apt-get > /dev/null || skip "this is no Debian; docs/cpp.md names what to install and how to build"
missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2> /dev/null | grep -q "ok installed" || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    [ "$(id -u)" = 0 ] || skip "needs ${missing[*]}; as root: apt-get install ${missing[*]}"
    apt-get -q update > /dev/null || skip "needs ${missing[*]}, and there is no package index"
    DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "${missing[@]}" > /dev/null
fi
.ci/onnxruntime_headers.sh "$headers" || skip "needs ONNX Runtime's headers, and deb.debian.org does not answer"

cmake -S engines/cpp -B "$build" -G Ninja -DONNXRUNTIME_INCLUDE="$PWD/$headers/usr/include/onnxruntime"
cmake --build "$build"
"$build/star_tests"
[ -x "$python" ] || skip "tests/cpp, which compares with Python: needs $python"
STAR_EXPORT_CPP=$(realpath "$build") "$python" -m pytest tests/cpp
echo "not run: TensorRT itself, whose headers are in no registry; its session ran on a fake"
