"""Device facts: environments of driver and actors, and settings of torch and vLLM that differ between CPU and CUDA."""

import logging
import math
import os
import resource
import warnings
from collections.abc import Mapping
from typing import Any

from quadriga.actors.runtime.cpu_quota import cpu_quota

ENVIRONMENT = {
    # Models and data sets are local; a look-up in the hub would only wait for its timeout.
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::UserWarning,ignore::DeprecationWarning",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "DS_LOG_LEVEL": "error",
}

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Names of this machine that requests reach without a proxy."""


def driver_environment() -> dict[str, str]:
    """Return the environment of the driver, and of Ray where we start it."""
    return ENVIRONMENT | {
        "DS_ACCELERATOR": "cpu",  # the driver computes nothing; without this DeepSpeed looks for devices and warns
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "RAY_prestart_worker_first_driver": "0",  # every process of ours has an environment that idle workers lack
        "RAY_worker_niceness": "0",  # Ray's 15 would let anything else on the machine starve the training
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DEDUP_LOGS_SKIP_REGEX": "^A worker died or was killed while executing",  # our messages name it
    }


def prepare_driver() -> None:
    """Set the driver's environment, before it imports torch or Ray; variables set by the user are kept."""
    for name, value in driver_environment().items():
        os.environ.setdefault(name, value)
    os.environ |= _without_proxy(os.environ)
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)


def _without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that keep requests to this machine from a proxy; none if no proxy is set."""
    if not any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in environment):
        return {}
    kept = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    hosts = ",".join(dict.fromkeys([*filter(None, kept.split(",")), *LOOPBACK]))
    return {"no_proxy": hosts, "NO_PROXY": hosts}


def resolve_device(setting: str) -> str:
    """Return the device of a run's processes, `cpu` or `cuda`, for the setting `auto`, `cpu` or `cuda`.

    `auto` is `cuda` if the Ray cluster has a GPU.
    """
    if setting != "auto":
        return setting
    import ray

    return "cuda" if ray.is_initialized() and ray.cluster_resources().get("GPU", 0) > 0 else "cpu"


def without_gpu(setting: str) -> bool:
    """Return whether processes on this machine will run on its CPU, without initialising CUDA."""
    return setting == "cpu" or (setting == "auto" and not os.path.exists("/dev/nvidiactl"))


def process_environment(device: str, threads: int) -> dict[str, str]:
    """Return the environment of an actor process, to be set before it imports torch; threads: of its CPU kernels."""
    env = dict(ENVIRONMENT, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    if device == "cpu":
        env |= {"DS_ACCELERATOR": "cpu", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_TARGET_DEVICE": "cpu"}
        # vLLM compiles one helper of its sampler, which takes 5 s and a C++ compiler and saves microseconds.
        env |= {"TORCH_COMPILE_DISABLE": "1"}
        # Large tensors begin at a huge page, so that freed ones leave holes in which others fit: without it a forward
        # pass of 4,096 tokens whose tensors take 54 MiB grew a process by 220 MiB.
        env |= {"THP_MEM_ALLOC_ENABLE": "1"}
    else:
        # The driver's accelerator, which Ray's processes inherit, is the CPU.
        env |= {"DS_ACCELERATOR": "cuda", "NCCL_CUMEM_ENABLE": "0"}
    return env


def device_engine_arguments(device: str, max_tokens: int) -> dict[str, Any]:
    """Return the vLLM EngineArgs that depend on the device; max_tokens: longest sequence."""
    if device == "cpu":
        # After a chunk of a prompt vLLM rewinds the request's seeded generator, which CPU generators cannot do.
        return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(8192, max_tokens)}
    return {}


def start_torch(device: str, threads: int) -> Any:
    """Prepare torch in this process; return the torch.device of its models."""
    import torch

    # oneMKL 2024.2, in torch's CPU wheels, detects the CPU when a vector function is first called, and its variable for
    # an instant holds a value that selects a kernel of low accuracy: of two threads that call at once, one computed its
    # half of a cosine 1e-4 off, once in a thousand starts (pytorch/pytorch#188792). One call on one thread prevents it.
    torch.cos(torch.zeros(1))
    torch.set_num_threads(threads)
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.cuda.set_device(0)
        return torch.device("cuda", 0)
    return torch.device("cpu")


def communication_backend(device: str) -> str:
    """Return the torch.distributed backend of a group of ranks."""
    return "nccl" if device == "cuda" else "gloo"


def memory_bytes(device: str) -> int:
    """Return this process's peak memory on its device in bytes: CUDA allocations, or resident memory on CPU."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def gpu_bytes(device: str) -> int | None:
    """Return the memory of this process's first GPU in bytes, without touching it; None on CPU."""
    if device != "cuda":
        return None
    from vllm.platforms import current_platform

    return int(current_platform.get_device_total_memory())


def cores() -> int:
    """Return the number of CPU cores that this process may use: of its affinity, or fewer by its container's quota."""
    quota = cpu_quota()
    available = len(os.sched_getaffinity(0))
    return available if quota is None else max(1, min(available, math.ceil(quota)))
