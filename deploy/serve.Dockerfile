# `star-export serve` on CPUs, without torch. At the root of the repository:
#   docker build -f deploy/serve.Dockerfile -t star-export-serve .
# (with --build-arg EXTRAS=serve,client for --upstream, which needs no bundle)
#   docker run -p 8000:8000 -v "$PWD/bundle:/bundle:ro" -e STAR_EXPORT_API_KEY=secret star-export-serve
FROM python:3.12-slim AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
ARG EXTRAS=serve
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/*.whl)[${EXTRAS}]"
USER 65532:65532
EXPOSE 8000
# The server is process 1: it gets SIGTERM, and finishes the answers it has begun.
ENTRYPOINT ["star-export", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["/bundle"]
