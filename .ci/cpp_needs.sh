#!/usr/bin/env bash
# What engines/cpp is built with: Debian's packages, which root installs where they lack, and ONNX Runtime's headers.
# Usage: .ci/cpp_needs.sh [PACKAGE ...], more of them. Where something cannot be had it says what, and ends with 1.
set -euo pipefail
cd "$(dirname "$0")/.."
packages=(g++ cmake ninja-build pkgconf nlohmann-json3-dev libpcre2-dev libutf8proc-dev libcli11-dev doctest-dev
          libpng-dev libjpeg62-turbo-dev "$@")

lack() { echo "skipped: $*"; exit 1; }

command -v dpkg-query apt-get > /dev/null || lack "this is no Debian; docs/cpp.md names what to install and how to build"
missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2> /dev/null | grep -q "ok installed" || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    [ "$(id -u)" = 0 ] || lack "needs ${missing[*]}; as root: apt-get install ${missing[*]}"
    # Another apt-get of this machine may be at work.
    apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120)
    "${apt[@]}" update || lack "needs ${missing[*]}, and apt-get update fails"
    "${apt[@]}" install -y --no-install-recommends "${missing[@]}" > /dev/null \
        || lack "needs ${missing[*]}, which apt-get does not install"
fi
.ci/onnxruntime_headers.sh build/onnxruntime-headers || lack "needs ONNX Runtime's headers of Debian 13, which apt-get does not give"
