"""What a plan says against what processes really take: memory of a model of 100M parameters, seconds of whole steps."""

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from helpers.planned_memory import planned_and_measured, save_large
from helpers.small_stages import demonstrations, prompts, rankings

from quadriga.data.rundir import RunDir
from quadriga.launch.config.load import build
from quadriga.launch.plan.benchmark import calibrate
from quadriga.launch.plan.calibration import Calibration
from quadriga.launch.plan.step_time import step_time
from quadriga.launch.plan.workload import planned_stages, work_of
from quadriga.orchestrator.run import run
from quadriga.orchestrator.tracking.tracker import read_metrics

pytestmark = pytest.mark.integration

LENGTH = 64
CLUSTER = {
    "device": "cpu",
    "train_tokens": 512,
    "forward_tokens": 512,
    "rollout": {"kv_cache_bytes": 64 << 20},
    "deadlines": {"start": 300, "call": 300, "generate": 300},
}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 110M parameters."""
    return save_large(tmp_path_factory.mktemp("large"))


@pytest.mark.parametrize(
    "role",
    ["reference", *(pytest.param(role, marks=pytest.mark.slow) for role in ("actor", "critic", "reward", "rollout"))],
)
def test_memory_is_as_planned(ray_cluster: None, large: Path, role: str, tmp_path: Path) -> None:
    """Within 10 % of what the process grew by."""
    planned, measured = planned_and_measured(role, large, CLUSTER, tmp_path)
    print(f"{role}: planned {planned / 2**20:.0f} MiB, measured {measured / 2**20:.0f} MiB")
    assert planned == pytest.approx(measured, rel=0.1)


@pytest.fixture(scope="module")
def measured_machine(ray_cluster: None) -> Iterator[Calibration]:
    """This machine as it is now, with whatever else runs on it."""
    yield calibrate("cpu", "float32")


def fresh(folder: Path, **shape: Any) -> Path:
    """A Llama of this shape with random weights and a small tokenizer."""
    from quadriga.actors.model.export import save_fresh_model
    from quadriga.data.tokens.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["What is the red sun? It is old. The blue moon is a green star."] * 4, 300)
    common = {"model_type": "llama", "max_position_embeddings": 256, "tie_word_embeddings": True}
    save_fresh_model(common | shape, tokenizer, 0, folder)
    return folder


def scorer(model: Path, folder: Path) -> Path:
    """A reward model on the trunk of another model."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    judge = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
    judge.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def wide_sft(folder: Path) -> dict[str, Any]:
    """Two layers, 256 wide."""
    model = fresh(folder / "m", hidden_size=256, intermediate_size=768, num_hidden_layers=2, num_attention_heads=4)
    data = {"train": demonstrations(folder / "rows.jsonl"), "max_tokens": 64}
    return {"stage": "sft", "model": {"path": str(model)}, "data": data, "batch_size": 32}


def deep_ppo(folder: Path) -> dict[str, Any]:
    """Four layers, 192 wide, every model."""
    model = fresh(folder / "m", hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6)
    return {
        "stage": "ppo",
        "policy": {"path": str(model)},
        "reward": {"type": "model", "path": str(scorer(model, folder / "judge"))},
        "prompts": {"train": prompts(folder / "rows.jsonl"), "max_tokens": 32},
        "prompts_per_step": 16,
        "samples_per_prompt": 2,
        "sampling": {"max_tokens": 24},
        "algorithm": {"minibatch_size": 16},
    }


def small_reward(folder: Path) -> dict[str, Any]:
    """Three layers, 128 wide, in batches of ten prompts with four answers each."""
    model = fresh(folder / "m", hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=2)
    data = {"train": rankings(folder / "rows.jsonl"), "max_tokens": 64}
    return {"stage": "reward", "model": {"path": str(model)}, "data": data, "batch_size": 10}


@pytest.mark.slow
@pytest.mark.parametrize("config", [wide_sft, deep_ppo, small_reward])
def test_seconds_are_as_planned(
    measured_machine: Calibration, tmp_path: Path, config: Callable[[Path], dict[str, Any]]
) -> None:
    """Within 25 % of the median step; no measured model has one of these shapes."""
    common = {"name": "timed", "run_dir": str(tmp_path / "run"), "total_steps": 10, "tracking": {"wandb": False}}
    settings = build({**config(tmp_path), **common, "cluster": {"device": "cpu"}})
    planned = step_time(planned_stages(settings)[0], work_of(settings), measured_machine)
    assert run(settings) == 0
    rows = read_metrics(RunDir(settings.run_dir).metrics_path)[2:]
    measured = median(row["timing_s/step"] for row in rows)
    parts = {key: round(median(row[key] for row in rows), 3) for key in rows[0] if key.startswith("timing_s/")}
    print(f"{config.__name__}: planned {planned['step']:.3f} s {planned}, measured {measured:.3f} s {parts}")
    assert planned["step"] == pytest.approx(measured, rel=0.25)
