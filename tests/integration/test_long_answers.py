"""One PPO step whose answers are far longer than a window, or as long as a context: engine against trainer."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from helpers.small_stages import prompts
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from quadriga.data.rundir import RunDir
from quadriga.launch.config.load import build
from quadriga.launch.plan.devices import layout
from quadriga.launch.plan.workload import planned_stages
from quadriga.orchestrator.cluster.processes import Processes, processes
from quadriga.orchestrator.run import run
from quadriga.orchestrator.tracking.tracker import read_metrics
from quadriga.orchestrator.training import trainer

pytestmark = pytest.mark.integration

PROMPT, ANSWERS = 32, 4


def save_talker(folder: Path, tokenizer_of: Path, context: int, window: int | None) -> Path:
    """Save a random model of two layers that practically never ends an answer."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if window is not None:
        shape |= {"sliding_window": window}
    config = AutoConfig.for_model("llama" if window is None else "mistral", **shape)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        # All hidden states share a direction, and the end token's row of the head points away from it.
        model.model.embed_tokens.weight += torch.randn(128)
        tokens = torch.randint(len(tokenizer), (1, 128))
        mean = model.model(tokens).last_hidden_state[0].mean(0)
        model.lm_head.weight[tokenizer.eos_token_id] = -8 * mean / mean.norm()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def scorer(policy: Path, folder: Path) -> Path:
    """Save a reward model on the policy's trunk."""
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1, dtype=torch.float32)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(policy).save_pretrained(folder)
    return folder


def growth(running: Processes) -> dict[str, int]:
    """Return what each role's processes grew by since their imports, in bytes."""
    grown = {role: group.memory - group.description["memory_before_model"] for role, group in running.groups.items()}
    (worker,) = running.fleet.workers
    return grown | {"rollout": running.fleet.peak_memory() - ray.get(worker.starting)["memory_before_model"]}


@pytest.mark.parametrize(
    ("context", "window", "answer"),
    [(4096, 512, 2048), pytest.param(4096, None, 4096 - PROMPT, marks=pytest.mark.slow)],
    ids=["window", "context"],
)
def test_long_answers(
    ray_cluster: None,
    made_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    context: int,
    window: int | None,
    answer: int,
) -> None:
    """Log-probs within 1e-4. `pytest -s` prints what the processes took, beside the plan."""
    policy = save_talker(tmp_path / "policy", made_model, context, window)
    measured: dict[str, int] = {}

    @contextmanager
    def measuring(*arguments: Any) -> Iterator[Processes]:
        with processes(*arguments) as running:
            yield running
            measured.update(growth(running))

    monkeypatch.setattr(trainer, "processes", measuring)
    longest = PROMPT + answer
    raw = {
        "stage": "ppo",
        "name": "long",
        "run_dir": str(tmp_path / "run"),
        "cluster": {
            "train_tokens": longest,
            "forward_tokens": longest,
            "rollout": {"kv_cache_bytes": (ANSWERS * longest + 128) * 2 * 2 * 64 * 4, "max_num_seqs": ANSWERS},
            "deadlines": {"start": 240, "call": 300, "generate": 300},
        },
        "policy": {"path": str(policy)},
        "reward": {"type": "model", "path": str(scorer(policy, tmp_path / "reward"))},
        "prompts": {"train": prompts(tmp_path / "rows.jsonl"), "max_tokens": PROMPT},
        "prompts_per_step": ANSWERS,
        "sampling": {"max_tokens": answer},
        "algorithm": {"minibatch_size": ANSWERS, "epochs": 1},
        "total_steps": 1,
        "tracking": {"wandb": False, "samples": ANSWERS},
    }
    settings = build(raw)
    assert run(settings) == 0
    (row,) = read_metrics(RunDir(settings.run_dir).metrics_path)
    footprints = layout(planned_stages(settings)[0]).footprints
    for role, grown in measured.items():
        print(f"{role}: planned {footprints[role].peak / 2**20:.0f} MiB, measured {grown / 2**20:.0f} MiB")
    assert row["perf/total_tokens"] > ANSWERS * answer  # no answer ended early
    assert 0 < row["rollout/logprob_diff_max"] < 1e-4
