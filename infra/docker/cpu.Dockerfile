# Nodes without GPUs. Build from the root of the tree: docker build -f infra/docker/cpu.Dockerfile -t raydpo-cpu .
# The code is not in the image: it travels as Ray's working_dir, so that a change of code needs no new image.
ARG PYTHON=python:3.11-slim-bookworm
FROM ${PYTHON} AS build

# An index of torch's CPU builds, where one is at hand: that build is 2 GB smaller than the one with CUDA.
ARG TORCH_INDEX=""
ENV UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1
RUN pip install --no-cache-dir uv==0.13.9 && python -m venv --without-pip /opt/raydpo
COPY infra/requirements/cpu.txt /tmp/cpu.txt
# torch first and by itself; then the lock, without the packages whose CUDA builds break a CPU torch.
RUN uv pip install --python /opt/raydpo ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} torch==2.13.0 \
    && uv pip install --python /opt/raydpo --no-deps --requirement /tmp/cpu.txt

FROM ${PYTHON}
# g++ for torch.compile, libnuma for vLLM, and no other tool of the build. Debian's own versions: bookworm fixes them.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ libnuma1 && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 raydpo
COPY --from=build /opt/raydpo /opt/raydpo
ENV PATH=/opt/raydpo/bin:${PATH}
USER 10001
WORKDIR /home/raydpo
