#!/usr/bin/env bash
# Fuzzes what engines/cpp reads from outside: pictures, tokenizers, manifests, prompts, all at once.
# Usage: .ci/fuzz_cpp.sh [SECONDS]; what a fuzzer finds is in build/cpp-fuzz/found-NAME.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-30}
build=build/cpp-fuzz
.ci/cpp_needs.sh clang libclang-rt-14-dev || exit 0
cmake -S engines/cpp -B "$build" -G Ninja -DCMAKE_CXX_COMPILER=clang++ -DSTAR_SANITIZE=ON -DSTAR_FUZZ=ON -DSTAR_TESTS=OFF \
    -DONNXRUNTIME_INCLUDE="$PWD/build/onnxruntime-headers/usr/include/onnxruntime" > /dev/null
fuzzers=(picture tokenizer manifest prompt)
ninja -C "$build" "${fuzzers[@]/#/fuzz_}"

fuzz() {
    # New inputs stay in the build folder; the repository's corpus is only read.
    mkdir -p "$build/corpus-$1" "$build/found-$1"
    "$build/fuzz/fuzz_$1" "$build/corpus-$1" "engines/cpp/fuzz/corpus/$1" -max_len=8192 -timeout=30 \
        -max_total_time="$seconds" -rss_limit_mb=2048 -artifact_prefix="$build/found-$1/" -print_final_stats=1 \
        > "$build/$1.log" 2>&1 || { tail -n 60 "$build/$1.log"; return 1; }
    echo "$1: $(sed -n 's/stat::number_of_executed_units: *//p' "$build/$1.log") inputs, and it fell over none"
}

running=()
for name in "${fuzzers[@]}"; do
    fuzz "$name" &
    running+=($!)
done
for process in "${running[@]}"; do wait "$process"; done
