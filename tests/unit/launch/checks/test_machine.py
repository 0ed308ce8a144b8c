"""Checks of this machine."""

from pathlib import Path

import pytest

from quadriga.launch.checks import machine


@pytest.mark.parametrize(
    ("found", "level"), [((3, 10), "problem"), ((3, 11), "ok"), ((3, 12), "ok"), ((3, 13), "problem")]
)
def test_python(found: tuple[int, int], level: str) -> None:
    result = machine.check_python(found)
    assert result.level == level
    assert level == "ok" or "Quadriga needs Python 3.11 or 3.12, and this is 3.1" in result.text


def test_disk() -> None:
    assert machine.check_disk(Path("/x"), 1 << 30).text.startswith("Only 1.0 GB of disk is free at /x")
    assert machine.check_disk(Path("/x"), 50 << 30).level == "ok"


def test_memory() -> None:
    assert machine.check_memory(1 << 30).level == "problem"
    assert machine.check_memory(None).level == "note"
    assert machine.check_memory(8 << 30).level == "ok"


def test_no_compiler_is_only_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    result = machine.check_compiler()
    assert (result.level, result.text.count(".")) == ("note", 2)


def test_versions_are_compared_with_the_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {result.level for result in machine.check_versions()} == {"ok"}
    names = [result.subject for result in machine.check_versions()]
    assert {"torch", "transformers", "ray", "deepspeed", "wandb"} <= set(names)
    monkeypatch.setattr(machine, "version", lambda name: "0.1")
    assert all("but" in result.text for result in machine.check_versions())


def test_a_package_that_imports() -> None:
    assert machine.check_import("json").level == "ok"


def test_a_package_that_does_not_import() -> None:
    result = machine.check_import("no_such_package")
    assert result.level == "problem"
    assert "ModuleNotFoundError" in result.text


def test_the_key_is_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "abcdef")
    result = machine.check_tracking_key()
    assert "there is a key" in result.text
    assert "abcdef" not in result.text
