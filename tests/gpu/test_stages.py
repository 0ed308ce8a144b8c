"""Whole stages on GPUs with a model of SmolLM2-135M's shape: fine-tuning, then PPO beside its engine.

`pytest -s` prints what they took.
"""

from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from helpers.small_stages import demonstrations, prompts

from quadriga.data.rundir import RunDir
from quadriga.launch.config.load import build
from quadriga.launch.plan.devices import layout
from quadriga.launch.plan.workload import planned_stages
from quadriga.orchestrator.run import run
from quadriga.orchestrator.tracking.tracker import read_metrics

GPUS = torch.cuda.device_count()
pytestmark = pytest.mark.skipif(GPUS == 0, reason="needs a CUDA device")
two_gpus = pytest.mark.skipif(GPUS < 2, reason="needs two CUDA devices")

SHAPE = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
DEADLINES = {"start": 300, "call": 120, "generate": 120}
PPO_STEPS = 12


@pytest.fixture(scope="module")
def base(made_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of that shape, with the small models' tokenizer: 106M parameters."""
    from transformers import AutoTokenizer

    from quadriga.actors.model.export import save_fresh_model

    folder = tmp_path_factory.mktemp("base") / "model"
    save_fresh_model(SHAPE, AutoTokenizer.from_pretrained(made_model), 0, folder)
    return folder


@pytest.fixture(scope="module")
def fine_tuned(ray_cluster: None, base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A hundred steps of SFT with the defaults of a GPU."""
    folder = tmp_path_factory.mktemp("sft")
    rows = {"train": demonstrations(folder / "rows.jsonl"), "max_tokens": 64, "heldout_fraction": 0.2}
    raw = {
        "stage": "sft",
        "name": "sft",
        "run_dir": str(folder / "run"),
        "cluster": {"device": "cuda", "deadlines": DEADLINES},
        "model": {"path": str(base)},
        "data": rows,
        "batch_size": 16,
        "total_steps": 100,
        "optimizer": {"lr": 3e-4},
        "heldout_every": 50,
        "tracking": {"wandb": False},
    }
    assert run(build(raw)) == 0
    return RunDir(raw["run_dir"])


@pytest.fixture(scope="module")
def reward(fine_tuned: RunDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scorer with a random head on the fine-tuned model."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path_factory.mktemp("reward") / "model"
    torch.manual_seed(1)
    trunk = fine_tuned.export_dir / "policy"
    model = AutoModelForSequenceClassification.from_pretrained(trunk, num_labels=1, dtype=torch.float32)
    torch.nn.init.normal_(model.score.weight, std=0.05)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(trunk).save_pretrained(folder)
    return folder


def ppo(folder: Path, policy: Path, reward: Path, cluster: dict[str, Any]) -> dict[str, Any]:
    """The config of a dozen steps of 64 answers."""
    return {
        "stage": "ppo",
        "name": "ppo",
        "run_dir": str(folder / "run"),
        "cluster": {"device": "cuda", "train_tokens": 4096, "forward_tokens": 8192, "deadlines": DEADLINES} | cluster,
        "policy": {"path": str(policy)},
        "reward": {"type": "model", "path": str(reward)},
        "prompts": {"train": prompts(folder / "rows.jsonl"), "max_tokens": 32},
        "prompts_per_step": 16,
        "samples_per_prompt": 4,
        "sampling": {"max_tokens": 96},
        "algorithm": {"minibatch_size": 32, "epochs": 2},
        "total_steps": PPO_STEPS,
        "optimizer": {"lr": 1e-5, "schedule": "constant"},
        "critic_optimizer": {"lr": 1e-4},
        "tracking": {"wandb": False},
    }


def train(raw: dict[str, Any], largest_mean: float) -> list[dict[str, float]]:
    """Run a PPO stage; check engine against trainer, print what it took, and return its rows.

    largest_mean: of the differences of log-probs in nats, in any step.
    """
    assert run(build(raw)) == 0
    rows = read_metrics(RunDir(raw["run_dir"]).metrics_path)
    assert [row["global_step"] for row in rows] == list(range(1, PPO_STEPS + 1))
    (stage,) = planned_stages(build(raw))
    for role, footprint in layout(stage).footprints.items():
        print(f"{role}: planned {footprint.peak / 1e9:.2f} GB, measured {rows[-1][f'system/memory_gb_{role}']:.2f} GB")
    for name in sorted(rows[-1]):
        if name.startswith(("timing_s/", "perf/", "rollout/logprob", "actor/log_ratio", "actor/kl")):
            values = [row[name] for row in rows]
            print(f"{name}: median {median(values):.4g}, first {values[0]:.4g}, last {values[-1]:.4g}")
    assert all(row["rollout/logprob_diff_mean"] < largest_mean for row in rows)
    assert abs(rows[0]["actor/kl"]) < 1e-3
    return rows


def test_fine_tuning_learns(fine_tuned: RunDir) -> None:
    rows = read_metrics(fine_tuned.metrics_path)
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    print("loss", losses[:: len(losses) // 10], "tokens/s", median(row["perf/tokens_per_second"] for row in rows[10:]))
    assert len(rows) == 100 and losses[-1] < 0.3 < 4 < losses[0]


@pytest.mark.parametrize("eager", [True, False])
def test_ppo_on_one_gpu(fine_tuned: RunDir, reward: Path, tmp_path: Path, eager: bool) -> None:
    """All five share it; then with compiled graphs in the engine, which is the default."""
    rollout = {"enforce_eager": eager, "kv_cache_bytes": 1 << 30}
    train(ppo(tmp_path, fine_tuned.export_dir / "policy", reward, {"placement": "colocate", "rollout": rollout}), 0.05)


def test_ppo_in_float32(fine_tuned: RunDir, reward: Path, tmp_path: Path) -> None:
    """The engine's attention may compute its products in TF32, with 10 bits of mantissa."""
    cluster = {"placement": "colocate", "dtype": "float32", "rollout": {"enforce_eager": True}}
    train(ppo(tmp_path, fine_tuned.export_dir / "policy", reward, cluster), 1e-3)


@two_gpus
@pytest.mark.parametrize(
    "cluster",
    [
        {"placement": [["actor", "critic", "reference", "reward"], ["rollout"]]},
        {"placement": "colocate", "actor": {"ranks": 2}, "critic": {"ranks": 2}, "rollout": {"workers": 2}},
        {"placement": [["actor", "critic", "reference", "reward", "rollout"]], "rollout": {"tensor_parallel": 2}},
    ],
    ids=["separate", "two ranks", "tensor parallel"],
)
def test_ppo_on_two_gpus(fine_tuned: RunDir, reward: Path, tmp_path: Path, cluster: dict[str, Any]) -> None:
    train(ppo(tmp_path, fine_tuned.export_dir / "policy", reward, cluster), 0.05)
