"""What a process of each role takes when it works on a model of 110M parameters, beside what its plan says."""

from pathlib import Path
from typing import Any

import numpy as np

from quadriga.actors.model.batch import Element, LossPart
from quadriga.actors.model.group import ActorGroup
from quadriga.actors.model.heads import ModelSpec
from quadriga.actors.settings import OptimizerSettings, SamplingSettings
from quadriga.data.records import Prompt
from quadriga.kernels.losses.policy import PolicyClip
from quadriga.kernels.losses.value import ValueClip
from quadriga.launch.config.load import build
from quadriga.launch.plan.devices import layout
from quadriga.launch.plan.workload import planned_stages
from quadriga.orchestrator.cluster.processes import ModelUse, Processes, RolloutPlan, processes
from quadriga.orchestrator.rollout.pool import GroupWeights, RolloutPool

LENGTH = 64
"""Tokens of every sequence."""


def save_large(folder: Path) -> Path:
    """Save a Llama of 109,529,856 random parameters."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama",
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        vocab_size=32000,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def as_ppo(model: Path, cluster: dict[str, Any]) -> Any:
    """A PPO stage whose models are all this one; its data is not read."""
    half = {"max_tokens": LENGTH}
    return build(
        {
            "stage": "ppo",
            "name": "planned",
            "policy": {"path": str(model)},
            "reward": {"type": "model", "path": str(model)},
            "prompts": {"train": "none.jsonl", **half},
            "sampling": half,
            "cluster": cluster,
        }
    )


def sequences(number: int) -> list[list[int]]:
    """Random tokens."""
    generator = np.random.default_rng(0)
    return [generator.integers(3, 30000, LENGTH).tolist() for _ in range(number)]


def train(group: ActorGroup, loss: Any) -> None:
    """Two optimizer steps of one full micro-batch."""
    fields = ("weights", "advantages", "old_logprobs", "old_values", "returns")
    elements = [Element([s], tokens={name: [np.ones(LENGTH, np.float32)] for name in fields}) for s in sequences(8)]
    for _ in range(2):
        group.update([LossPart(loss, elements, 8.0 * LENGTH)], 1e-5).result()


def work_as(role: str, running: Processes) -> int:
    """Do what a role does in a step; returns how much its process grew since its imports, in bytes."""
    if role == "rollout":
        pool = RolloutPool(running.fleet, (), lambda ids: "", GroupWeights(running, "reference"))
        for version in range(2):
            pool.sync(version)
            asked = [Prompt(str(number), [], ids) for number, ids in enumerate(sequences(16))]
            pool.generate(asked, 1, SamplingSettings(max_tokens=8), 0, version)
        import ray

        (worker,) = running.fleet.workers
        return running.fleet.peak_memory() - ray.get(worker.starting)["memory_before_model"]
    group = running.groups[role]
    for _ in range(3):
        if role in ("actor", "reference"):
            group.forward_logprobs(sequences(16), 1.0, "forward").result()
        else:
            values = group.forward_values if role == "critic" else group.forward_scores
            values(sequences(16), "forward").result()
    if role == "actor":
        train(group, PolicyClip(0.2))
    if role == "critic":
        train(group, ValueClip(0.2))
    return group.memory - group.description["memory_before_model"]


def planned_and_measured(role: str, model: Path, cluster: dict[str, Any], logs: Path) -> tuple[int, int]:
    """Return what a plan says that a process of this role takes, and what it grew by at its work, in bytes."""
    settings = as_ppo(model, cluster)
    planned = layout(planned_stages(settings)[0]).footprints[role].peak
    hosted = "reference" if role == "rollout" else role
    spec = ModelSpec(str(model), "logprobs" if hosted in ("actor", "reference") else "scalar", bias=0.0)
    use = ModelUse(hosted, spec, OptimizerSettings() if hosted in ("actor", "critic") else None)  # type: ignore[arg-type]
    rollout = RolloutPlan(str(model), 2 * LENGTH, load=False) if role == "rollout" else None
    with processes(settings.cluster, [use], rollout, str(logs)) as running:
        measured = work_as(role, running)
    return planned, measured
