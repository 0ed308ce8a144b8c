# Quadriga for NVIDIA GPUs, for Kubernetes and for container options of Slurm:  docker build -t quadriga .
# CUDA is the one that the pinned torch is built for. `devel`: DeepSpeed compiles its offloading optimizer with it.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04

# wget: KubeRay asks with it whether a pod is well.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        build-essential ninja-build python3.12 python3.12-dev python3.12-venv wget \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/quadriga/bin:$PATH PYTHONUNBUFFERED=1
COPY . /src
RUN python3.12 -m venv /opt/quadriga && pip install --no-cache-dir '/src[cuda]'

# The base image's `ubuntu`, by number: Kubernetes can tell that it is not root.
USER 1000:1000
WORKDIR /quadriga
CMD ["quadriga", "--help"]
