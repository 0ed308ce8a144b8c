"""What doctor says of a machine."""

from pathlib import Path

import pytest
from rich.console import Console

from quadriga.launch.checks import machine
from quadriga.launch.checks.report import CheckResult
from quadriga.launch.checks.stage import check_config
from quadriga.launch.cli.doctor import doctor
from quadriga.launch.config.load import load_config


@pytest.mark.parametrize(
    ("found", "level"), [((3, 10), "problem"), ((3, 11), "ok"), ((3, 12), "ok"), ((3, 13), "problem")]
)
def test_python(found: tuple[int, int], level: str) -> None:
    finding = machine.python_version(found)
    assert finding.level == level
    assert level == "ok" or "Quadriga needs Python 3.11 or 3.12, and this is 3.1" in finding.text


def test_disk_and_memory() -> None:
    assert machine.free_disk(Path("/x"), 1 << 30).text.startswith("Only 1.0 GB of disk are free at /x")
    assert machine.free_disk(Path("/x"), 50 << 30).level == "ok"
    assert machine.free_memory(1 << 30).level == "problem"
    assert machine.free_memory(None).level == "note"
    assert machine.free_memory(8 << 30).level == "ok"


def test_no_compiler_is_only_worth_knowing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    finding = machine.compiler()
    assert (finding.level, finding.text.count(".")) == ("note", 2)


def test_versions_are_compared_with_the_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {finding.level for finding in machine.pinned_versions()} == {"ok"}
    names = [finding.subject for finding in machine.pinned_versions()]
    assert {"torch", "transformers", "ray", "deepspeed", "wandb"} <= set(names)
    monkeypatch.setattr(machine, "version", lambda name: "0.1")
    assert all("but" in finding.text for finding in machine.pinned_versions())


def test_a_package_that_does_not_import() -> None:
    finding = machine.trial_import("no_such_package")
    assert finding.level == "problem" and "ModuleNotFoundError" in finding.text
    assert machine.trial_import("json").level == "ok"


def test_the_key_is_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "abcdef")
    finding = machine.tracking_key()
    assert "WANDB_API_KEY is set" in finding.text and "abcdef" not in finding.text


def test_doctor_counts_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    results = [
        CheckResult("ok", "a", "fine"),
        CheckResult("problem", "b", "broken [x]"),
        CheckResult("note", "c", "odd"),
    ]
    monkeypatch.setattr("quadriga.launch.cli.doctor.check_machine", lambda: iter(results))
    console = Console(record=True, width=100)
    assert doctor(None, console) == 1
    text = console.export_text()
    assert "FAIL  b: broken [x]" in text and "1 problem to mend." in text


def test_doctor_looks_at_a_config(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "ppo.yaml"
    path.write_text(
        f"stage: ppo\nname: x\npolicy: {{path: {model}}}\ncritic: {{path: {model}}}\n"
        "reward: {type: function, function: 'json:dumps'}\n"
        "prompts: {train: [{builtin: assistant.prompts, rows: 3}], max_tokens: 96}\nsampling: {max_tokens: 32}\n"
        "cluster: {device: cpu, actor: {offload: all}}\n"
    )
    results = check_config(load_config(path))
    assert [finding.text for finding in results if finding.level == "note"] == [
        "`cluster.actor.offload` has no effect without a GPU."
    ]
    texts = " ".join(finding.text for finding in results if finding.level == "ok")
    for said in (
        "function json:dumps imports",
        "llama, context 128",
        "head size 32 is served",
        "one BOS",
        "prompts read: 3",
    ):
        assert said in texts
    assert not [finding for finding in results if finding.level == "problem"]
