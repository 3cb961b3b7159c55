# Nodes with GPUs. Build from the root of the tree: docker build -f infra/docker/gpu.Dockerfile -t raydpo-gpu .
# vLLM's own image has CUDA, torch and kernels that fit its version exactly; rebuilding that is how versions drift.
ARG VLLM=vllm/vllm-openai:v0.32.0
FROM ${VLLM}

# The image has `python3` alone (`submit`, and people, say `python`), and no wget, by which KubeRay before 1.6 probes.
# hadolint ignore=DL3008
RUN ln -sf "$(command -v python3)" /usr/local/bin/python \
    && apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 raydpo
COPY infra/requirements/gpu.txt /tmp/gpu.txt
RUN pip install --no-cache-dir --requirement /tmp/gpu.txt
# The base image starts an API server; Ray starts its own processes.
ENTRYPOINT []
USER 10001
WORKDIR /home/raydpo
