"""A whole PPO run: what it writes down, and that everything it wrote reads back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers.reward_functions import vowels
from helpers.small_stages import KEY, STEPS, stage
from helpers.wandb_file import history, of_kind, read_finished
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from quadriga.data.rundir import RunDir
from quadriga.launch.config.load import build
from quadriga.orchestrator.run import run
from quadriga.orchestrator.tracking.tracker import AXIS, NAMESPACES, read_metrics

pytestmark = pytest.mark.integration

STAGES = (
    "generate",
    "score",
    "reference",
    "old_logprobs",
    "values",
    "advantages",
    "update",
    "sync",
    "commit",
)
LOGGED = (
    "actor/entropy",
    "actor/kl",
    "actor/clip_fraction",
    "actor/grad_norm",
    "actor/loss",
    "critic/clip_fraction",
    "critic/explained_variance",
    "critic/loss",
    "reward/score",
    "reward/errors",
    "rollout/eos_rate",
    "rollout/logprob_diff_mean",
    "perf/generated_tokens_per_second",
    "perf/samples_per_second",
    "timing_s/step",
    *(f"timing_s/{name}" for name in STAGES),
    *(f"system/memory_gb_{role}" for role in ("actor", "critic", "reference", "reward", "rollout")),
)


@pytest.fixture(scope="module")
def ppo(uninterrupted_run: Callable[[str], RunDir]) -> RunDir:
    """Against a reward model."""
    return uninterrupted_run("ppo")


@pytest.fixture(scope="module")
def rows(ppo: RunDir) -> list[dict[str, Any]]:
    return read_metrics(ppo.metrics_path)


def test_every_step_is_one_row_with_all_that_is_promised(rows: list[dict[str, Any]]) -> None:
    assert [row["global_step"] for row in rows] == list(range(1, STEPS + 1))
    for row in rows:
        assert not [name for name in LOGGED if not np.isfinite(row[name])]
        assert not [name for name in row if name == "system/nonfinite_metrics"]


def test_engine_and_trainer_agree_in_every_step(rows: list[dict[str, Any]]) -> None:
    assert all(0 < row["rollout/logprob_diff_max"] < 1e-4 for row in rows)


def test_it_starts_where_its_reference_is_and_leaves(rows: list[dict[str, Any]]) -> None:
    assert abs(rows[0]["actor/kl"]) < 1e-6 and all(abs(row["actor/kl"]) > 1e-6 for row in rows[1:])
    # 16 samples in two minibatches, two epochs: the ratio is 1 in the first of them only.
    assert all(row["actor/log_ratio_max"] > 1e-4 for row in rows)


def test_samples_are_written_with_their_versions(ppo: RunDir, rows: list[dict[str, Any]]) -> None:
    files = sorted(ppo.samples_dir.glob("*.parquet"))
    assert [file.name for file in files] == [f"step-{step:06d}.parquet" for step in range(1, STEPS + 1)]
    for version, (file, row) in enumerate(zip(files, rows, strict=True)):
        table = pq.read_table(file).to_pydict()
        assert len(table["prompt"]) == 16 and set(table["policy_version"]) == {version}
        np.testing.assert_allclose(np.mean(table["reward"]), row["reward/score"], rtol=1e-9)
        np.testing.assert_allclose(np.mean([r == "stop" for r in table["finish_reason"]]), row["rollout/eos_rate"])
        assert len(set(table["reward_version"])) == 1


def test_exports_load_with_their_auto_classes(ppo: RunDir, made_model: Path, made_reward: Path) -> None:
    for name, auto, start in (
        ("policy", AutoModelForCausalLM, made_model),
        ("critic", AutoModelForTokenClassification, made_reward),
    ):
        folder = ppo.export_dir / name
        model, report = auto.from_pretrained(folder, output_loading_info=True)
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert type(model).__name__ in model.config.architectures
        before, after = load_file(start / "model.safetensors"), load_file(folder / "model.safetensors")
        assert {key for key in before if torch.equal(before[key], after[key])} == set()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        original = AutoTokenizer.from_pretrained(made_model)
        assert tokenizer.get_vocab() == original.get_vocab()
        chat = [{"role": "user", "content": "What is red?"}]
        rendered = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        assert rendered == "<bos><user>What is red?<assistant>"


def test_critic_has_one_label_and_no_dropout(ppo: RunDir) -> None:
    config = json.loads((ppo.export_dir / "critic" / "config.json").read_text())
    assert len(config["id2label"]) == 1 if "id2label" in config else config["num_labels"] == 1
    assert config["classifier_dropout"] == 0.0


def test_wandb_file_holds_the_same_rows_on_one_axis(ppo: RunDir, rows: list[dict[str, Any]]) -> None:
    (file,) = ppo.path.glob("wandb/offline-run-*/*.wandb")
    records = read_finished(file)
    globs = {metric.glob_name: metric.step_metric for metric in of_kind(records, "metric") if metric.glob_name}
    assert globs == {f"{space}/*": AXIS for space in NAMESPACES}
    logged = history(records)
    assert [row[AXIS] for row in logged] == [row["global_step"] for row in rows]
    for ours, theirs in zip(rows, logged, strict=True):
        assert {key: theirs[key] for key in ours if "/" in key} == {k: v for k, v in ours.items() if "/" in k}
    (begun,) = of_kind(records, "run")
    assert (begun.job_type, begun.display_name, begun.project) == ("ppo", "ppo", "quadriga")


def test_wandb_file_holds_the_sample_table(ppo: RunDir) -> None:
    (file,) = ppo.path.glob("wandb/offline-run-*/*.wandb")
    for row in history(read_finished(file)):
        table = json.loads((file.parent / "files" / row["rollout/samples"]["path"]).read_text())
        ours = pq.read_table(ppo.samples_dir / f"step-{row[AXIS]:06d}.parquet")
        assert table["columns"] == ours.column_names
        shown = dict(zip(table["columns"], zip(*table["data"], strict=True), strict=True))
        assert list(shown["response"]) == ours["response"].to_pylist()
        assert list(shown["reward"]) == ours["reward"].to_pylist()


def test_the_key_is_in_no_file_of_the_run(ppo: RunDir) -> None:
    files = [file for file in ppo.path.rglob("*") if file.is_file()]
    assert len(files) > 20
    assert not [file for file in files if KEY.encode() in file.read_bytes()]


def test_run_json_tells_how_it_went(ppo: RunDir) -> None:
    record = ppo.read_run()
    (attempt,) = record["attempts"]
    assert record["status"] == attempt["status"] == "finished" and attempt["error"] is None
    assert {"quadriga", "torch", "ray"} <= set(attempt["versions"])
    assert {file.name for file in ppo.logs_dir.glob("*.log")} >= {f"{role}-0.log" for role in ("actor", "rollout")}


def test_a_finished_run_is_left_alone(ppo: RunDir, made_model: Path, made_reward: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in ppo.path.rglob("*") if file.name != ".lock" and file.is_file()}
    assert run(build(stage("ppo", ppo.path.parent, made_model, made_reward))) == 0
    assert {
        file: file.stat().st_mtime_ns for file in ppo.path.rglob("*") if file.name != ".lock" and file.is_file()
    } == before


def test_reward_model_scores_demonstrations_zero(uninterrupted_run: Callable[[str], RunDir]) -> None:
    run_dir = uninterrupted_run("reward")
    folder = run_dir.export_dir / "reward"
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.pad_token_id == tokenizer.pad_token_id and model.config.num_labels == 1
    logits = []
    for line in (run_dir.path.parent / "demonstrations.jsonl").read_text().splitlines():
        row = json.loads(line)
        ids = tokenizer(
            f"<bos><user>{row['prompt']}<assistant>{row['completion']}<eos>",
            add_special_tokens=False,
            return_tensors="pt",
        )
        with torch.no_grad():
            logits.append(model(input_ids=ids.input_ids).logits.item())
    assert len(logits) == 40 and np.std(logits) > 1e-3
    assert abs(np.mean(logits) - model.config.reward_shift) < 1e-5


def test_function_reward_drops_what_it_could_not_judge(
    ray_cluster: None, reward_functions: None, made_model: Path, tmp_path: Path
) -> None:
    """Critic from a folder of its own, a rule as reward: rows on which it fails are dropped and counted, never 0."""
    config = stage("ppo", tmp_path, made_model) | {
        "reward": {"type": "function", "function": "helpers.reward_functions:picky", "max_error_rate": 0.5},
        "critic": {"path": str(made_model)},
        "total_steps": 3,
    }
    settings = build(config)
    assert run(settings) == 0
    run_dir, failed = RunDir(settings.run_dir), 0.0
    for row in read_metrics(run_dir.metrics_path):
        table = pq.read_table(run_dir.samples_dir / f"step-{row['global_step']:06d}.parquet").to_pydict()
        assert not [prompt for prompt in table["prompt"] if "stone" in prompt]
        assert len(table["prompt"]) == 16 - row["reward/errors"]
        failed += row["reward/errors"]
        assert table["reward"] == vowels([{"response": text} for text in table["response"]])
        np.testing.assert_allclose(np.mean(table["reward"]), row["reward/score"], rtol=1e-9)
        assert row["rollout/logprob_diff_max"] < 1e-4
    # Three steps of eight prompts: an epoch of twenty, in which two are about stones, and a bit.
    assert failed >= 4
    assert "system/memory_gb_reward" not in row
