"""The recipe of docs/extending.md for a stage: its files in a folder outside the tree, and nothing of ours touched."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.recipes import write_recipes
from helpers.small_stages import CLUSTER, demonstrations, rankings

from quadriga.data.rundir import RunDir
from quadriga.launch.cli import doctor
from quadriga.launch.cli.app import main
from quadriga.orchestrator.tracking.tracker import read_metrics

pytestmark = pytest.mark.integration
DPO = ("toy_dpo/spec.py", "toy_dpo/trainer.py", "dpo.yaml")


@pytest.fixture(scope="module")
def workplace(made_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's folder: the page's files, and `dpo.yaml` cut to a few steps on a small model."""
    folder = tmp_path_factory.mktemp("extending")
    write_recipes(folder, *DPO)
    config = yaml.safe_load((folder / "dpo.yaml").read_text()) | {
        "model": {"path": str(made_model)},
        "data": {"train": rankings(folder / "rankings.jsonl"), "max_tokens": 64, "heldout_fraction": 0.2},
        "batch_size": 8,
        "heldout_every": 3,
        "optimizer": {"lr": 1e-3, "schedule": "constant"},
        "total_steps": 6,
        "cluster": CLUSTER | {"actor": {"ranks": 2}},
        "tracking": {"wandb": False},
    }
    (folder / "dpo.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy_dpo"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def run(ray_cluster: None, workplace: Path) -> Path:
    """A finished pipeline of the user's stage and of a stage of ours that starts from its policy."""
    tune: dict[str, Any] = {
        "stage": "sft",
        "model": {"path": "unset"},
        "data": {"train": demonstrations(workplace / "rows.jsonl"), "max_tokens": 64},
        "total_steps": 1,
        "cluster": CLUSTER,
    }
    stages = [
        {"name": "prefer", "config": "dpo.yaml"},
        {"name": "tune", "config": tune, "inputs": {"model.path": "prefer.policy"}},
    ]
    pipeline = {"stage": "pipeline", "name": "mine", "run_dir": str(workplace / "out"), "stages": stages}
    (workplace / "pipeline.yaml").write_text(yaml.safe_dump(pipeline | {"tracking": {"wandb": False}}))
    assert main(["run", "pipeline.yaml"]) == 0
    return workplace / "out/round-0"


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what was printed, each space and line break as one space."""
    return " ".join("".join(capsys.readouterr()).split())


def test_the_loss_falls_from_log_2(run: Path) -> None:
    """It is log 2 where policy and reference are the same."""
    rows = read_metrics(RunDir(run / "prefer").metrics_path)
    losses = [row["train/loss"] for row in rows]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses[-1] < 0.9 * losses[0]
    assert [row["eval/loss"] for row in rows if "eval/loss" in row][-1] < math.log(2)


def test_its_reference_runs_in_a_process_of_its_own(run: Path) -> None:
    processes = RunDir(run / "prefer").read_run()["processes"]
    assert set(processes) == {"actor 0", "actor 1", "reference 0"}


def test_its_policy_starts_the_next_stage(run: Path) -> None:
    tuned = yaml.safe_load(RunDir(run / "tune").config_path.read_text())
    assert tuned["model"]["path"] == str(run / "prefer/export/policy")
    assert RunDir(run / "tune").read_run()["status"] == "finished"


def test_doctor_names_its_problems(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "check_machine", list)  # takes longer than the rest
    assert main(["doctor", "dpo.yaml", "data.max_tokens=500", "sampling=1"]) == 2
    assert "`sampling` is not a setting" in said(capsys)
    assert main(["doctor", "dpo.yaml", "data.max_tokens=500"]) == 2
    problems = said(capsys)
    assert "`data.max_tokens` allows sequences of 500 tokens" in problems
    assert "data read: 10 rows of a sample" in problems


def test_data_shows_its_rows(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "dpo.yaml"]) == 0
    assert "dpo (toy_dpo.spec:SPEC)" in (text := said(capsys))
    assert "ranking " in text


def test_plan_holds_its_reference(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "dpo.yaml", "--json"]) == 0
    (planned,) = json.loads(capsys.readouterr().out)["stages"]
    assert {role: each["trained"] for role, each in planned["roles"].items()} == {"actor": True, "reference": False}


@pytest.mark.parametrize("command", ["run", "doctor", "data", "plan"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("rewrd", "`stage: rewrd` (the command line) is not a stage; did you mean `reward`?"),
        ("toy_dpo.spec:SPECK", "the module toy_dpo.spec has no `SPECK`"),
        ("toy_dpo.spec:DpoStage", "is not a stage"),
    ],
)
def test_an_unknown_stage_is_refused(
    workplace: Path, capsys: pytest.CaptureFixture[str], command: str, name: str, reason: str
) -> None:
    assert main([command, "dpo.yaml", f"stage={name}"]) == 2
    assert reason in said(capsys)
