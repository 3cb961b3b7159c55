# Nodes without GPUs. Build from the root of the tree: docker build -f infra/docker/cpu.Dockerfile -t raydpo-cpu .
# The code is not in the image: it travels as Ray's working_dir, so that a change of code needs no new image.
FROM python:3.11-slim-bookworm

RUN apt-get update && apt-get install --yes --no-install-recommends g++ libnuma1 && rm -rf /var/lib/apt/lists/*
COPY infra/requirements/cpu.txt /tmp/cpu.txt
# torch first and by itself; then the lock, without the packages whose CUDA builds break a CPU torch.
RUN pip install --no-cache-dir torch==2.13.0 && pip install --no-cache-dir --no-deps -r /tmp/cpu.txt
WORKDIR /work
