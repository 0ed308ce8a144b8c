"""Console output of a run: progress bars with the time left, and tables; plain lines without a terminal."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

Clock = Callable[[], float]
SHOWN = ("loss", "score", "gold", "kl", "accuracy")
"""Last parts of the names of the metrics that are shown, in this order."""
PLAIN_WIDTH = 120


def make_console() -> Console:
    """Return a console for the terminal; without one, for plain text that is wide enough for the tables."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def duration(seconds: float) -> str:
    """Format seconds as `0:07`, `12:34` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class TimeLeft:
    """Estimate of the seconds left at the pace of the last `window` updates, so that slow first steps are forgotten.

    done, total: counts at the start. began: the start in seconds of `clock`; None is now.
    """

    def __init__(
        self, done: int, total: int, clock: Clock = time.monotonic, window: int = 20, began: float | None = None
    ):
        self.done, self.total = done, total
        self._clock = clock
        self.began = clock() if began is None else began
        self._marks: deque[tuple[float, int]] = deque(maxlen=window + 1)
        self._marks.append((self.began, done))

    def update(self, done: int) -> None:
        """Record how many are done now."""
        self.done = done
        self._marks.append((self._clock(), done))

    def __call__(self) -> float | None:
        """Return the seconds left, which count down between updates; None while too little is known."""
        (start, before), (last, now) = self._marks[0], self._marks[-1]
        # The first of many answers includes a warm-up, which says nothing about the others.
        if now <= before or (len(self._marks) == 2 and now - before < 0.02 * self.total):
            return None
        expected = (last - start) / (now - before) * (self.total - now)
        return max(0.0, expected - (self._clock() - last))


def stage_progress(stage: str, name: str, path: Path, console: Console | None = None) -> "StageProgress":
    """Return the progress display of the stage that runs in `path`, and print its header."""
    progress = StageProgress(stage, name, console)
    progress.note(f"{progress.title} in {_short(str(path))}")
    return progress


class _LeftColumn(ProgressColumn):
    """Column with the time so far and the time left."""

    def render(self, task: Task) -> Text:
        return Text(_times(task.fields["left"], task.elapsed or 0.0), style="cyan")


def _times(left: Callable[[], float | None], elapsed: float) -> str:
    seconds = left()
    return duration(elapsed) if seconds is None else f"{duration(elapsed)}, {duration(seconds)} left"


class StageProgress:
    """Progress of one stage, as a context manager: its waits, then its steps, and the parts of a long step.

    every: seconds between two lines without a terminal.
    """

    def __init__(
        self,
        stage: str,
        name: str,
        console: Console | None = None,
        every: float = 10.0,
        clock: Clock = time.monotonic,
    ):
        self.console = console or make_console()
        self.title = name if stage == name else f"{stage} {name}"
        self._every, self._clock = every, clock
        self._live = self.console.is_terminal
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            _LeftColumn(),
            TextColumn("{task.fields[shown]}", markup=False, style="dim"),
            console=self.console,
            transient=True,
        )
        self._steps: _Bar | None = None
        self._waits: list[_Bar] = []
        self._shown: dict[str, float] = {}
        self._last_line = -float("inf")

    def __enter__(self) -> Self:
        self._began = self._clock()
        if self._live:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._live:
            self._bars.stop()
        if self._steps:
            done, total = self._steps.left.done, self._steps.left.total
            end = "done" if done >= total and kind is None else f"stopped after step {done} of {total}"
            self.note(f"{self.title}: {end} in {duration(self._clock() - self._began)}{self._metrics()}")

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(Text(text), soft_wrap=True)

    def skipped(self) -> None:
        """Print that the stage was finished before."""
        self.note(f"{self.title}: finished before, skipped")

    @contextmanager
    def waiting(self, title: str, expected: float | None = None) -> Iterator[None]:
        """Show that something of unknown length is running, until the block ends or `started` is called.

        expected: seconds that it took before, for the estimate of the time left.
        """
        began = self._clock()

        def left() -> float | None:
            return None if expected is None else max(0.0, expected - (self._clock() - began))

        bar = _Bar(self, f"{self.title}: {title}", TimeLeft(0, 1, self._clock), left, counted=False)
        self._waits.append(bar)
        if not self._live:
            self.note(f"{self.title}: {title}" + (f", about {duration(expected)}" if expected else ""))
        try:
            yield
        finally:
            bar.remove()
            self._waits.remove(bar)

    def started(
        self,
        step: int,
        total: int,
        dashboard: str | None = None,
        wandb: str | None = None,
        logs: Sequence[str] = (),
    ) -> None:
        """Begin the steps, after `step` steps of an earlier attempt; print the addresses and the processes' logs."""
        for bar in self._waits:
            bar.remove()
        if step:
            self.note(f"{self.title}: resumes after step {step} of {total}")
        for label, value in (("Ray dashboard", dashboard), ("W&B", wandb)):
            if value:
                self.note(f"  {label}: {value}")
        for log in logs:
            self.note(f"  log: {_short(log)}")
        left = TimeLeft(step, total, self._clock)
        self._steps = _Bar(self, self.title, left, left)

    def step(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Record that a step is done, and show the latest value of each metric in `SHOWN`."""
        assert self._steps, "started() comes first"
        self._shown |= {name: value for name, value in metrics.items() if value is not None and _is_shown(name)}
        self._steps.update(step, self._metrics())
        self._print_due(self._steps)

    def part(self, title: str) -> Callable[[int, int], None]:
        """Begin a counted part of a step, with a bar below the steps; return a function to call with (done, total)."""
        bar: _Bar | None = None
        began = self._clock()

        def report(done: int, total: int) -> None:
            nonlocal bar
            if bar is None:
                left = TimeLeft(0, total, self._clock, began=began)
                bar = _Bar(self, f"  {title}", left, left)
            bar.update(done)
            if self._clock() - began >= self._every:  # lines of short parts would displace those of the steps
                self._print_due(bar)
            if done >= total:
                bar.remove()
                bar = None

        return report

    def _metrics(self) -> str:
        names = sorted(self._shown, key=lambda name: (SHOWN.index(_last(name)), name != f"train/{_last(name)}", name))
        return "".join(f"  {name.removeprefix('train/')} {self._shown[name]:.4g}" for name in names[:5])

    def _print_due(self, bar: "_Bar") -> None:
        """Print a line about a bar if there is no terminal and the last line is `every` seconds old."""
        now = self._clock()
        if not self._live and now - self._last_line >= self._every:
            self._last_line = now
            steps, title = self._steps, bar.title
            if steps and bar is not steps:
                title = f"{steps.title} {steps.count}: {title.strip()}"
            self.note(f"{title} {bar.count}, {_times(bar.countdown, now - bar.began)}{bar.shown}")


class _Bar:
    """One line of progress: a Rich task, with the state that plain lines are printed from."""

    def __init__(
        self,
        owner: StageProgress,
        title: str,
        left: TimeLeft,
        countdown: Callable[[], float | None],
        counted: bool = True,
    ):
        self.title, self.left, self.countdown, self.shown = title, left, countdown, ""
        self.began = left.began
        self._counted = counted
        self._bars = owner._bars
        self._task = self._bars.add_task(
            title,
            total=left.total if counted else None,
            completed=left.done,
            count=self.count,
            left=countdown,
            shown="",
        )

    @property
    def count(self) -> str:
        return f"{self.left.done}/{self.left.total}" if self._counted else ""

    def update(self, done: int, shown: str = "") -> None:
        self.left.update(done)
        self.shown = shown
        self._bars.update(self._task, completed=done, count=self.count, shown=shown)

    def remove(self) -> None:
        if self._task in self._bars.task_ids:
            self._bars.remove_task(self._task)


def stages_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a pipeline's table of stages, from the rows of summary.json.

    rows: {"stage", "truthful", "harmless", "helpful", "reward_score", "kl", "seconds"}; a missing value or None is
    shown as a dash.
    """
    table = Table(title="Stage by stage", title_justify="left")
    table.add_column("stage")
    for title in ("truthful", "harmless", "helpful", "reward score", "KL from SFT", "seconds"):
        table.add_column(title, justify="right")
    digits = {"truthful": 3, "harmless": 3, "helpful": 3, "reward_score": 3, "kl": 3, "seconds": 0}
    for row in rows:
        values = ((row.get(key), places) for key, places in digits.items())
        table.add_row(
            Text(str(row["stage"])), *("–" if value is None else f"{value:.{places}f}" for value, places in values)
        )
    return table


def answers_table(prompts: Sequence[str], answers: Mapping[str, Sequence[str]], kinds: Sequence[str] = ()) -> Table:
    """Return a table of answers: one row per prompt, one column per model.

    answers: model name -> one answer per prompt. kinds: empty, or one per prompt.
    """
    table = Table(title="Side by side", title_justify="left", show_lines=True)
    if kinds:
        table.add_column("kind")
    table.add_column("prompt", ratio=1)
    for name in answers:
        table.add_column(Text(name), ratio=1)
    for index, prompt in enumerate(prompts):
        cells = [*kinds[index : index + 1], prompt, *(texts[index] for texts in answers.values())]
        table.add_row(*(Text(cell) for cell in cells))  # Text: a model's [brackets] are not markup
    return table


def _is_shown(name: str) -> bool:
    """Return whether the last part of a name is in `SHOWN`; timings such as `timing_s/score` are not scores."""
    return _last(name) in SHOWN and not name.startswith("timing_s/")


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _short(path: str) -> str:
    """Return a path relative to the working directory if it is below it, else unchanged."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path
