#!/usr/bin/env bash
# ONNX Runtime's C headers from Debian 13's package, unpacked into a folder; nothing is installed.
# Usage: .ci/onnxruntime_headers.sh FOLDER, whose usr/include/onnxruntime has them then.
set -euo pipefail
folder=$1
[ -e "$folder/usr/include/onnxruntime/onnxruntime_c_api.h" ] && exit
part=$(mktemp -d)
trap 'rm -rf "$part"' EXIT
mkdir -p "$part"/state/lists/partial "$part"/cache/archives/partial "$folder"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main" > "$part/sources.list"
apt=(apt-get -q -o "Dir::Etc::sourcelist=$part/sources.list" -o Dir::Etc::sourceparts=/dev/null
     -o "Dir::State=$part/state" -o "Dir::Cache=$part/cache" -o Dir::State::status=/var/lib/dpkg/status)
"${apt[@]}" update > /dev/null
(cd "$part" && "${apt[@]}" download libonnxruntime-dev > /dev/null 2>&1)
dpkg -x "$part"/libonnxruntime-dev_*.deb "$folder"
