#!/usr/bin/env bash
# Stream an answer from Triton over HTTP.
#
# examples/triton_client.sh localhost:8000 docs/shapes.png "What number is written?"
set -euo pipefail
url=$1 image=$2 prompt=$3

printf '{"image": "%s", "prompt": "%s", "keep": 29, "stream": true}' "$(base64 -w0 "$image")" "$prompt" |
    curl --silent --show-error --no-buffer --data @- "http://$url/v2/models/star_llava/generate_stream"
