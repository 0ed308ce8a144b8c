"""Bytes of processes against hand computations for Llama 3.1 8B and 70B."""

from typing import Any

import pytest

P8, P70 = 8_030_261_248, 70_553_706_496
"""Parameters of Llama 3.1 8B and 70B, as published."""

# A token and layer, width 4096, MLP 14336, keys and values of 8 heads of 128. Two norms in float32: 4 + 2 + 2 bytes
# each; q, output and the projection's input, keys and values; gate, SiLU, up, product. Then the last norm.
TOKEN = 32 * (2 * 4096 * 8 + (3 * 4096 + 2 * 1024 + 4 * 14336) * 2) + 4096 * 10


def test_actor_of_8b(plan_ppo: Any) -> None:
    """Eight ranks of ZeRO-3 in bfloat16: 2 + 4 + 4 + 8 bytes per parameter, divided by 8."""
    actor = plan_ppo().layout.footprints["actor"]
    share = P8 // 8
    assert actor.held["weights"] == 2 * share
    assert actor.held["master"] == 4 * share
    assert actor.held["gradients"] == 4 * share
    assert actor.held["optimizer"] == 8 * share
    assert actor.held["buffers"] == 2 * 500_000_000  # DeepSpeed's reduce_bucket_size
    assert actor.phases["update"]["activations"] == 2048 * TOKEN
    # Gradient of the head: float32 sum, one product, the sum in bfloat16; a chunk of logits twice in float32, once not.
    assert actor.phases["update"]["head"] == 128256 * 4096 * (4 + 2) + 256 * 128256 * (4 + 4 + 2)
    assert actor.phases["sync"]["transfer"] == 1 << 30  # the preset's bucket


def test_reference_and_engine_of_8b(plan_ppo: Any) -> None:
    footprints = plan_ppo().layout.footprints
    assert footprints["reference"].held["weights"] == 2 * (P8 // 8)
    assert "optimizer" not in footprints["reference"].held
    assert footprints["rollout"].held["weights"] == 2 * P8
    assert footprints["rollout"].held["KV cache"] == 8 << 30


def test_peaks_on_one_gpu_are_added(plan_ppo: Any) -> None:
    plan = plan_ppo()
    total = sum(footprint.peak for footprint in plan.layout.footprints.values())
    gpu = plan.layout.devices[0]
    assert (gpu.kind, gpu.count, gpu.bytes) == ("gpu", 8, total)


@pytest.fixture
def plan_70b(plan_ppo: Any) -> Any:
    """The plan of 70B in the preset for 32 GPUs."""
    return plan_ppo("policy=models/llama-3.1-70b", "cluster=clusters/h100x32-70b")


def test_offload_moves_states_to_the_host(plan_70b: Any) -> None:
    """141 GB of a host's memory for each of its 8 actor ranks, libraries, and what a sync packs."""
    actor, bucket = plan_70b.layout.footprints["actor"], 2 << 30
    assert actor.held["weights"] == 2 * P70 // 8
    assert "master" not in actor.held
    assert sum(actor.host.values()) == 16 * P70 // 8 + 2 * bucket
    host = next(device for device in plan_70b.layout.devices if device.kind == "host")
    assert host.count == 4
    assert host.bytes == 16 * P70 + 8 * (2 * bucket + (3 << 30))


def test_reference_and_engines_of_70b_are_divided(plan_70b: Any) -> None:
    """By 4 each."""
    footprints = plan_70b.layout.footprints
    assert footprints["reference"].held["weights"] == 2 * P70 // 4
    assert footprints["rollout"].held["weights"] == 2 * P70 // 4
    assert plan_70b.layout.gpus == 8 + 8 + 4 + 4 + 2 * 4
