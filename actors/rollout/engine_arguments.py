"""Arguments of a rollout worker's vLLM engine, decided from the cluster's settings and the device alone."""

from typing import Any

from quadriga.actors.runtime.device import device_engine_arguments
from quadriga.actors.settings import ClusterSettings
from quadriga.data.weight_headers import count_parameters


def engine_arguments(
    model: str, cluster: ClusterSettings, device: str, max_tokens: int, load: bool, gpu_bytes: int | None
) -> dict[str, Any]:
    """Return vLLM's EngineArgs, without those that name our own classes.

    model: folder of the model. max_tokens: longest sequence, prompt and answer together. load: read the folder's
    weights; otherwise a sync brings them. gpu_bytes: memory of each of the engine's GPUs; None on CPU.
    """
    settings, chosen = cluster.rollout, cluster.on(device)
    arguments = dict(
        model=model,
        dtype=chosen.dtype,
        max_model_len=max_tokens,
        max_num_seqs=settings.max_num_seqs,
        tensor_parallel_size=settings.tensor_parallel,
        kv_cache_memory_bytes=chosen.kv_cache_bytes,
        enforce_eager=chosen.enforce_eager,
        enable_prefix_caching=settings.prefix_caching,
        skip_tokenizer_init=True,
        logprobs_mode="processed_logprobs",
        distributed_executor_backend="uni" if settings.tensor_parallel == 1 else "mp",
        load_format="auto" if load else "dummy",
        disable_log_stats=True,
        trust_remote_code=False,
        seed=0,
    )
    if gpu_bytes is not None:
        # The size of the KV cache is given, but vLLM still refuses to start unless this share of a GPU is free, and
        # its default of 0.92 never is where models share the GPU.
        width = 2 if chosen.dtype == "bfloat16" else 4
        needed = width * count_parameters(model) / settings.tensor_parallel + chosen.kv_cache_bytes
        arguments["gpu_memory_utilization"] = min(1.0, needed / gpu_bytes)
    return arguments | device_engine_arguments(device, max_tokens) | settings.engine
