"""Runs on what other tools write: generation settings, columns and verdicts in other forms than ours."""

import datetime
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import broken_workers
from helpers.small_stages import demonstrations, prompts, stage
from rich.console import Console
from transformers import GenerationConfig

from quadriga.data.errors import Fault
from quadriga.data.rundir import RunDir
from quadriga.launch.config.load import build
from quadriga.orchestrator.run import run
from quadriga.orchestrator.tracking.console import StageProgress
from quadriga.orchestrator.tracking.tracker import read_metrics

pytestmark = pytest.mark.integration


@pytest.fixture
def shipped_model(made_model: Path, tmp_path: Path) -> Path:
    """A model with temperature and top_p but no do_sample, and with settings of generation in config.json."""
    folder = shutil.copytree(made_model, tmp_path / "shipped")
    for name, more in (
        ("generation_config.json", {"temperature": 0.6, "top_p": 0.9}),
        ("config.json", {"repetition_penalty": 1.1}),
    ):
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | more))
    return folder


def test_training_ends_with_an_export_and_counts_what_it_cut(
    ray_cluster: None, shipped_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = stage("sft", tmp_path, shipped_model)
    rows = Path(demonstrations(tmp_path / "rows.jsonl"))
    long = {"prompt": "What is it?", "completion": "It is so. " * 40}
    rows.write_text(rows.read_text() + json.dumps(long) + "\n")
    settings = build(config | {"data": config["data"] | {"heldout_fraction": 0.0}, "heldout_every": None})
    assert run(settings) == 0
    run_dir = RunDir(settings.run_dir)
    assert "recovered" not in [event["event"] for event in run_dir.events()]
    back = GenerationConfig.from_pretrained(run_dir.export_dir / "policy")
    assert (back.temperature, back.top_p, back.do_sample) == (0.6, 0.9, True)
    assert "repetition_penalty" not in (run_dir.export_dir / "policy" / "config.json").read_text()
    metrics = read_metrics(run_dir.metrics_path)
    assert (metrics[0]["train/answers_cut"], metrics[0]["train/answers_without_end"]) == (1.0, 1.0)
    assert "train/answers_cut" not in metrics[1]
    assert "1 of 41 answers (2%) exceed `max_tokens` = 64 and were cut" in " ".join(capfd.readouterr().out.split())


def test_an_error_in_the_export_is_not_answered_by_training_again(
    ray_cluster: None, made_model: Path, tmp_path: Path
) -> None:
    """Reported: such a ValueError counted as a lost process, and the run trained all over, three times."""
    import ray

    from quadriga.orchestrator.stages.sft.trainer import Sft

    ray.cloudpickle.register_pickle_by_value(broken_workers)  # the actors' processes cannot import it
    settings = build(stage("sft", tmp_path, made_model) | {"total_steps": 2, "heldout_every": None})
    run_dir = RunDir.create(settings.run_dir)
    trainer = Sft(settings, run_dir)
    trainer.worker_classes = {"actor": broken_workers.UnwillingWorker}
    quiet = StageProgress("sft", "test", Console(file=io.StringIO()))
    with (
        quiet,
        pytest.raises(Fault, match=r"ValueError: this cannot be written .*in export, .*broken_workers.py") as told,
    ):
        trainer.execute(quiet)
    assert type(told.value) is Fault
    assert run_dir.events() == []
    assert [row["global_step"] for row in read_metrics(run_dir.metrics_path)] == [1, 2]


def test_ranking_writes_columns_of_any_type(
    ray_cluster: None,
    reward_functions: None,
    small_chunks: None,
    made_model: Path,
    tmp_path: Path,
) -> None:
    rows = [json.loads(line) for line in Path(prompts(tmp_path / "rows.jsonl")).read_text().splitlines()[:4]]
    created = datetime.datetime(2024, 1, 1)
    pq.write_table(pa.Table.from_pylist([row | {"created": created} for row in rows]), tmp_path / "rows.parquet")
    config = stage("rank", tmp_path, made_model)
    settings = build(config | {"prompts": {"train": str(tmp_path / "rows.parquet"), "max_tokens": 32}})
    assert run(settings) == 0
    lines = (RunDir(settings.run_dir).export_dir / "rankings.jsonl").read_text().splitlines()
    assert {json.loads(line)["meta"]["created"] for line in lines} == {"2024-01-01 00:00:00"}


def test_a_verdict_of_numbers_and_texts(
    ray_cluster: None,
    reward_functions: None,
    made_model: Path,
    made_reward: Path,
    tmp_path: Path,
) -> None:
    config: dict[str, Any] = stage("ppo", tmp_path, made_model, made_reward)
    judge = {"type": "function", "function": "helpers.reward_functions:verlish"}
    settings = build(config | {"reward": judge, "critic": {"path": str(made_model)}, "total_steps": 1})
    assert run(settings) == 0
    run_dir = RunDir(settings.run_dir)
    (row,) = read_metrics(run_dir.metrics_path)
    table = pq.read_table(next(run_dir.samples_dir.glob("*.parquet"))).to_pylist()
    assert row["reward/part/acc"] == sum(sample["reward/acc"] for sample in table) / len(table)
    assert all(sample["reward/pred"] == sample["response"] for sample in table)
    assert all(json.loads(sample["reward/ids"]) for sample in table)
    assert "reward/note" not in table[0]
