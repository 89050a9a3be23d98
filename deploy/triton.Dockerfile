# `star_llava` on NVIDIA's Triton image, with TensorRT-RTX engines. At the root of the repository:
#   docker build -f deploy/triton.Dockerfile -t star-export-triton .
#   docker run --gpus all -p 8001:8001 -p 8002:8002 -v "$PWD/bundle:/bundle:ro" star-export-triton
ARG TRITON=25.10
FROM python:3.12-slim AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM nvcr.io/nvidia/tritonserver:${TRITON}-py3
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/*.whl)[rtx]"
# HTTP is off: a body of some megabytes, as one photo makes, ends older servers (docs/triton.md).
EXPOSE 8001 8002
CMD ["star-export", "triton", "/bundle", "-o", "/tmp/models", "--overwrite", "--serve", "--", "--allow-http=false"]
