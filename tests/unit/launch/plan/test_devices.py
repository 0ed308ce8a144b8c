"""Which processes share devices, what fits, and what would."""

from pathlib import Path
from typing import Any

import pytest

from quadriga.launch.cli.app import main
from quadriga.launch.plan.planner import Plan

P8 = 8_030_261_248
"""Parameters of Llama 3.1 8B, as published."""


def gpus_of(plan: Plan) -> list[tuple[int, list[str]]]:
    return [(device.count, device.roles) for device in plan.layout.devices if device.kind == "gpu"]


def test_smallest_cluster_by_hand(plan_sft: Any) -> None:
    """8B on one GPU does not fit; the bytes of n ranks say how many do."""
    plan = plan_sft()
    assert not plan.fits

    def need(ranks: int) -> float:
        """18 bytes per parameter divided, DeepSpeed's bucket, the context, the larger of backward and optimizer."""
        token = 32 * (2 * 4096 * 8 + (3 * 4096 + 2 * 1024 + 4 * 14336) * 2) + 4096 * 10
        gathered = 2 * (128256 * 4096 + 50_000_000 + 500_000_000)
        head = 128256 * 4096 * 6 + 256 * 128256 * 10
        reduction = 2 * 500_000_000 + 4 * 500_000_000 / ranks
        backward = gathered + 1024 * token + head + reduction
        optimizer = 12 * min(P8 / ranks, 1e9)
        return 18 * P8 / ranks + 1e9 + 2**30 + max(backward, optimizer)

    least = next(ranks for ranks in range(1, 100) if need(ranks) <= 80_000_000_000)
    assert least == 3  # 145 GB of states on two GPUs leave no room for 12 bytes of 1e9 parameters' step
    spread = next(each for each in plan.suggestions if each.gpus > 1)
    assert spread.gpus == least
    assert spread.overrides == ["cluster.actor.ranks=3"]
    assert plan_sft(*spread.overrides).fits
    assert not plan_sft("cluster.actor.ranks=2").fits


def test_what_is_suggested_fits(plan_ppo: Any) -> None:
    plan = plan_ppo()
    assert not plan.fits
    assert {suggestion.gpus for suggestion in plan.suggestions} > {8}
    for suggestion in plan.suggestions:
        assert plan_ppo(*suggestion.overrides).fits, suggestion


def test_what_fits_gets_no_advice(plan_sft: Any) -> None:
    plan = plan_sft("cluster.actor.ranks=8")
    assert plan.fits
    assert plan.suggestions == []


def test_activations_that_no_cluster_divides(plan_sft: Any) -> None:
    plan = plan_sft("model=models/llama-3.1-70b", "data.max_tokens=8192")
    assert not plan.fits
    assert plan.suggestions == []


def test_processes_of_lists_share_their_gpus(plan_ppo: Any) -> None:
    plan = plan_ppo("cluster.placement=[[actor, critic, reference, reward], [rollout]]")
    assert gpus_of(plan) == [(8, ["actor", "critic", "reference", "reward"]), (8, ["rollout"])]


def test_ranks_with_a_part_of_a_gpu_share_one(plan_sft: Any) -> None:
    plan = plan_sft("cluster.actor.ranks=3", "cluster.actor.gpus=0.5")
    assert plan.layout.gpus == 2
    peak = plan.layout.footprints["actor"].peak
    assert [device.bytes for device in plan.layout.devices if device.kind == "gpu"] == [2 * peak, peak]


def test_roles_spread_over_nodes_have_their_own_hosts(plan_ppo: Any) -> None:
    """As the run would slot them: the actor's four hosts hold two ranks each, and engines are on a fifth."""
    spread = ["placement=[[actor, critic, reference, reward], [rollout]]", "actor.nodes=4", "rollout.workers=3"]
    plan = plan_ppo(*(f"cluster.{override}" for override in spread), "cluster.actor.offload=optimizer")
    host = next(device for device in plan.layout.devices if device.kind == "host")
    assert host.count == 5
    assert plan.layout.gpus == 11
    held = {role: sum(footprint.host.values()) + (3 << 30) for role, footprint in plan.layout.footprints.items()}
    pair = sum(held[role] for role in ("actor", "critic", "reference", "reward"))
    assert host.bytes == 2 * pair > 3 * held["rollout"]


@pytest.mark.parametrize(
    ("where", "hosts"),
    [
        ("slurm={nodes: 4, cpus: 32, gpus: 4}", 4),
        ("kubernetes={image: quadriga, claim: shared, nodes: 8, worker: {cpus: 8, memory: 64Gi, gpus: 2}}", 8),
        ("slurm=null", 2),  # of eight GPUs each
    ],
)
def test_nodes_are_as_large_as_the_config_says(where: str, hosts: int, plan_ppo: Any) -> None:
    """Eight GPUs with a rank of every model, and eight with an engine."""
    plan = plan_ppo(f"cluster.{where}", "cluster.placement=[[actor, critic, reference, reward], [rollout]]")
    assert plan.layout.gpus == 16
    assert [device.count for device in plan.layout.devices if device.kind == "host"] == [hosts]


def test_an_impossible_placement(ppo_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `run` would refuse is not planned."""
    assert main(["plan", str(ppo_file), "cluster.rollout.tensor_parallel=2", "cluster.rollout.workers=4"]) == 2
    assert "takes 2 GPUs and so cannot share one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "cluster", "tokens"),
    [("llama-3.1-8b", "h100x8-8b", 2048), ("llama-3.2-1b", "h100x1-1b", 2048), ("llama-3.1-70b", "h100x32-70b", 1024)],
)
def test_presets_hold_what_they_say(plan_ppo: Any, model: str, cluster: str, tokens: int) -> None:
    sizes = (f"prompts.max_tokens={tokens // 2}", f"sampling.max_tokens={tokens // 2}")
    assert plan_ppo(f"policy=models/{model}", f"cluster=clusters/{cluster}", *sizes).fits
