#!/usr/bin/env bash
# Stream an answer from Triton over HTTP.
#
# examples/triton_client.sh localhost:8000 docs/shapes.png "What number is written?"
set -euo pipefail
url=$1 image=$2 prompt=$3

# A body of more than about 4 MB ends tritonserver 2.51, and base64 is a third longer than the picture.
if (($(wc -c <"$image") > 2000000)); then
    echo "$image is too large for HTTP; use gRPC: star-export client, or examples/triton_client.py" >&2
    exit 2
fi
printf '{"image": "%s", "prompt": "%s", "keep": 29, "stream": true}' "$(base64 <"$image" | tr -d '\n')" "$prompt" |
    curl --silent --show-error --no-buffer --data @- "http://$url/v2/models/star_llava/generate_stream"
