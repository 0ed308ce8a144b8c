"""Console output: time left by an injected clock, lines without a terminal, tables."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from quadriga.orchestrator.tracking.console import (
    StageProgress,
    TimeLeft,
    answers_table,
    duration,
    stage_progress,
    stages_table,
)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def plain(width: int = 120) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=False)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_durations() -> None:
    assert [duration(s) for s in (0, 7.4, 59.6, 754, 3723)] == ["0:00", "0:07", "1:00", "12:34", "1:02:03"]


def test_time_left_follows_the_recent_pace(clock: Clock) -> None:
    left = TimeLeft(10, 110, clock, window=4)
    assert left() is None
    clock.now += 60  # a slow first step
    left.update(11)
    assert left() is None  # one of a hundred is not enough
    for done in range(12, 17):
        clock.now += 2
        left.update(done)
        assert done > 12 or left() == pytest.approx((60 + 2) / 2 * 98)
    assert left() == pytest.approx(2 * (110 - 16))  # the slow step has left the window
    clock.now += 5
    assert left() == pytest.approx(2 * 94 - 5)
    clock.now += 1000
    assert left() == 0


def test_lines_without_a_terminal_are_spaced(clock: Clock) -> None:
    console = plain()
    screen = StageProgress("sft", "demo", console, every=10, clock=clock)
    with screen as progress, progress.waiting("starting processes", expected=12):
        clock.now += 12
        progress.started(2, 12, "127.0.0.1:8265", "offline", ["/logs/actor-0.log"])
        for step in range(3, 13):
            clock.now += 4
            progress.step(step, {"train/loss": 1 / step, "timing_s/step": 4.0, "eval/loss": None})
    lines = text(console).splitlines()
    assert lines == [
        "sft demo: starting processes, about 0:12",
        "sft demo: resumes after step 2 of 12",
        "  Ray dashboard: 127.0.0.1:8265",
        "  W&B: offline",
        "  log: /logs/actor-0.log",
        "sft demo 3/12, 0:04, 0:36 left  loss 0.3333",
        "sft demo 6/12, 0:16, 0:24 left  loss 0.1667",
        "sft demo 9/12, 0:28, 0:12 left  loss 0.1111",
        "sft demo 12/12, 0:40, 0:00 left  loss 0.08333",
        "sft demo: done in 0:52  loss 0.08333",
    ]


def test_parts_of_a_long_step_are_counted(clock: Clock) -> None:
    console = plain()
    with StageProgress("ppo", "ppo", console, every=1, clock=clock) as progress:
        progress.started(0, 2)
        for step in (1, 2):
            report = progress.part("generate")
            for done in (16, 32, 64):
                clock.now += 3
                report(done, 64)
            progress.step(step, {"reward/score": 1.5, "reward/gold": 0.5, "train/loss": 0.25, "timing_s/score": 9.0})
    lines = text(console).splitlines()
    assert lines[0] == "ppo 0/2: generate 16/64, 0:03, 0:09 left"
    assert sum("generate 64/64" in line for line in lines) == 2
    assert lines[-1] == "ppo: done in 0:18  loss 0.25  reward/score 1.5  reward/gold 0.5"


def test_parts_of_short_steps_print_no_lines(clock: Clock) -> None:
    console = plain()
    with StageProgress("ppo", "ppo", console, every=10, clock=clock) as progress:
        progress.started(0, 6)
        for step in range(1, 7):
            clock.now += 4
            report = progress.part("generate")
            for done in (32, 64):
                clock.now += 4
                report(done, 64)
            progress.step(step, {"reward/score": 1.5})
    assert [line.split(",")[0] for line in text(console).splitlines()[:-1]] == [f"ppo {n}/6" for n in range(1, 7)]


def test_a_finished_stage_is_reported_as_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = plain()
    monkeypatch.chdir(tmp_path)
    with stage_progress("sft", "demo", tmp_path / "runs" / "demo", console) as progress:
        progress.skipped()
    assert text(console).splitlines() == ["sft demo in runs/demo", "sft demo: finished before, skipped"]


def test_a_failed_stage_reports_its_last_step(clock: Clock) -> None:
    console = plain()
    with (
        pytest.raises(RuntimeError, match="lost"),
        StageProgress("sft", "sft", console, clock=clock) as progress,
    ):
        progress.started(0, 10)
        progress.step(4, {})
        raise RuntimeError("lost")
    assert text(console).splitlines()[-1] == "sft: stopped after step 4 of 10 in 0:00"


def test_a_terminal_shows_bars_and_leaves_only_the_result() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None, legacy_windows=False)
    with StageProgress("sft", "demo", console) as progress:
        with progress.waiting("starting [processes]"):
            progress._bars.refresh()
            progress.started(0, 3)
        progress.part("generate")(1, 4)
        progress.step(1, {"train/loss": 0.5})
        progress._bars.refresh()
    shown = text(console)
    assert "sft demo: starting [processes]" in shown
    for part in ("generate", "1/4", "1/3", "left", "loss 0.5"):
        assert part in shown
    assert shown.splitlines()[-1].endswith("sft demo: stopped after step 1 of 3 in 0:00  loss 0.5")


def test_stages_table_has_a_dash_for_a_missing_value() -> None:
    console = plain()
    console.print(
        stages_table(
            [
                {"stage": "pretrain", "truthful": None, "seconds": 61.4},
                {"stage": "ppo", "truthful": 0.5, "harmless": 1, "helpful": 0.25, "reward_score": -1.2345, "kl": 3.0},
            ]
        )
    )
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text(console).splitlines() if "│" in line]
    assert rows == [
        ["pretrain", "–", "–", "–", "–", "–", "61"],
        ["ppo", "0.500", "1.000", "0.250", "-1.234", "3.000", "–"],
    ]


def test_answers_are_printed_as_they_are() -> None:
    console = plain()
    console.print(answers_table(["Why?", "How?"], {"sft": ["[bold]x", "y"], "ppo": ["[/]", "z"]}, ["fact", "how-to"]))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text(console).splitlines() if "│" in line]
    assert rows == [["fact", "Why?", "[bold]x", "[/]"], ["how-to", "How?", "y", "z"]]
