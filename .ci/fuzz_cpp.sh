#!/usr/bin/env bash
# Fuzzes what engines/cpp reads from outside: pictures, tokenizers, manifests, prompts.
# Usage: .ci/fuzz_cpp.sh [SECONDS], shared by all fuzzers; what one finds is in build/cpp-fuzz/found-NAME.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
build=build/cpp-fuzz
.ci/cpp_needs.sh clang libclang-rt-14-dev || exit 0
cmake -S engines/cpp -B "$build" -G Ninja -DCMAKE_CXX_COMPILER=clang++ -DSTAR_SANITIZE=ON -DSTAR_FUZZ=ON -DSTAR_TESTS=OFF \
    -DONNXRUNTIME_INCLUDE="$PWD/build/onnxruntime-headers/usr/include/onnxruntime" > /dev/null
fuzzers=(picture tokenizer manifest prompt)
ninja -C "$build" "${fuzzers[@]/#/fuzz_}"
for name in "${fuzzers[@]}"; do
    # New inputs stay in the build folder; the repository's corpus is only read.
    mkdir -p "$build/corpus-$name" "$build/found-$name"
    "$build/fuzz/fuzz_$name" "$build/corpus-$name" "engines/cpp/fuzz/corpus/$name" -max_len=8192 -timeout=10 \
        -max_total_time=$((seconds / ${#fuzzers[@]})) -rss_limit_mb=2048 -artifact_prefix="$build/found-$name/" \
        -print_final_stats=1 > "$build/$name.log" 2>&1 || { tail -n 60 "$build/$name.log"; exit 1; }
    echo "$name: $(sed -n 's/stat::number_of_executed_units: *//p' "$build/$name.log") inputs, none of which it fell over"
done
