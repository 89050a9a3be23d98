#!/usr/bin/env bash
# Fuzzes what engines/cpp reads from outside: pictures, tokenizers, manifests, prompts.
# Usage: .ci/fuzz_cpp.sh [SECONDS], shared by all fuzzers; what one finds is in build/cpp-fuzz/found-NAME.
set -euo pipefail
seconds=${1:-60}
build=build/cpp-fuzz
headers=$PWD/build/onnxruntime-headers/usr/include/onnxruntime
.ci/onnxruntime_headers.sh build/onnxruntime-headers
cmake -S engines/cpp -B "$build" -G Ninja -DCMAKE_CXX_COMPILER=clang++ -DSTAR_SANITIZE=ON -DSTAR_FUZZ=ON -DSTAR_TESTS=OFF \
  -DONNXRUNTIME_INCLUDE="$headers" > /dev/null
fuzzers=(picture tokenizer manifest prompt)
ninja -C "$build" "${fuzzers[@]/#/fuzz_}"
for name in "${fuzzers[@]}"; do
  # New inputs stay in the build folder; the repository's corpus is only read.
  mkdir -p "$build/corpus-$name" "$build/found-$name"
  binary=$(find "$build" -name "fuzz_$name" -type f)
  "$binary" "$build/corpus-$name" "engines/cpp/fuzz/corpus/$name" -max_total_time=$((seconds / ${#fuzzers[@]})) \
    -max_len=4096 -timeout=10 -rss_limit_mb=2048 -artifact_prefix="$build/found-$name/" -print_final_stats=1
done
