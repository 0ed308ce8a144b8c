"""A pipeline: runs stages in order, then rounds of repeated stages; a later run skips the finished ones."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quadriga.data.atomic_files import replace_folder
from quadriga.data.errors import INTERRUPTED, UserError
from quadriga.data.rundir import RunDir
from quadriga.data.settings import SEED_LIMIT
from quadriga.data.tokens import clock
from quadriga.orchestrator.attempt import failure_recorded, run_stage, versions
from quadriga.orchestrator.cluster.processes import connected
from quadriga.orchestrator.pipeline_settings import PipelineStage, StageEntry
from quadriga.orchestrator.settings import StageBase
from quadriga.orchestrator.stages.registry import spec_named, spec_of

Build = Callable[[Mapping[str, Any], Mapping[str, Any]], StageBase]
"""(a stage's raw config, its inputs by `key.path`) -> the validated stage."""


@dataclass(frozen=True)
class FinishedStage:
    """A finished stage of the pipeline: its entry's name, what it made, its round and its run directory."""

    name: str
    outputs: Mapping[str, str]
    round: int
    run: RunDir

    def output(self, name: str) -> str:
        """Return the path of one of its outputs."""
        return str(self.run.path / self.outputs[name])


def run_pipeline(pipeline: PipelineStage, run: RunDir, build: Build, allowed: Sequence[str] = ()) -> int:
    """Run every stage in order, on one Ray cluster; return the exit code.

    allowed: as in `run`. Raises the exception of a stage that fails; earlier stages stay finished.
    """
    run.start_attempt(versions())
    run.write_config(pipeline.model_dump(mode="json"))
    done: list[FinishedStage] = []
    with failure_recorded(run), clock.frozen_at(run.began()), connected(pipeline.cluster):
        for round_, entry in schedule(pipeline):
            folder = run.path / f"round-{round_}" / entry.name
            settings = _settings(pipeline, entry, round_, folder, done, build)
            if not run_stage(settings, RunDir.create(folder), allowed):
                run.end_attempt("interrupted")
                return INTERRUPTED
            done.append(FinishedStage(entry.name, spec_of(settings).makes(settings), round_, RunDir(folder)))
        publish_results(run, done)
        _evaluate(pipeline, run, done)
    run.end_attempt("finished")
    return 0


def schedule(pipeline: PipelineStage) -> Iterator[tuple[int, StageEntry]]:
    """Yield (round, entry) in order: `stages` are round 0, `repeat` is rounds 1 to `rounds`."""
    yield from ((0, entry) for entry in pipeline.stages)
    for number in range(1, pipeline.rounds + 1):
        yield from ((number, entry) for entry in pipeline.repeat)


def resolve_inputs(entry: StageEntry, done: list[FinishedStage]) -> dict[str, Any]:
    """Return an entry's inputs as `key.path` -> path of the newest output of that name.

    Of a list of names, the first that has an output counts; a key in `list_inputs` of the stage gets a list of at most
    one path.
    Raises UserError if an input does not name the output of an earlier stage.
    """
    resolved: dict[str, Any] = {}
    lists = spec_named(str(entry.config.get("stage"))).list_inputs
    for key, wanted in entry.inputs.items():
        names = [wanted] if isinstance(wanted, str) else wanted
        found = [path for name in names for path in _outputs(name, done)[:1]]
        if key in lists:
            resolved[key] = _outputs(names[0], done)[:1]
        elif found:
            resolved[key] = found[0]
        else:
            available = ", ".join(f"{d.name}.{output}" for d in done for output in d.outputs) or "none"
            raise UserError(f"Stage {entry.name}: input {key} needs {' or '.join(names)}; available: {available}.")
    return resolved


def publish_results(run: RunDir, done: list[FinishedStage]) -> None:
    """Copy the newest policy, critic and reward model to the pipeline's own export/."""
    for name in ("policy", "critic", "reward"):
        newest = [d for d in done if name in d.outputs]
        if newest:
            replace_folder(newest[-1].output(name), run.export_dir / name)


def _outputs(name: str, done: list[FinishedStage]) -> list[str]:
    """Return the paths of all outputs called `<entry>.<output>`, newest first."""
    entry, _, output = name.partition(".")
    return [d.output(output) for d in reversed(done) if d.name == entry and output in d.outputs]


def _settings(
    pipeline: PipelineStage,
    entry: StageEntry,
    round_: int,
    folder: Path,
    done: list[FinishedStage],
    build: Build,
) -> StageBase:
    """Build an entry's stage settings: its config, inputs, run directory, seed of the round, and W&B group."""
    inputs = resolve_inputs(entry, done)
    config: dict[str, Any] = dict(entry.config)
    config["run_dir"] = str(folder)
    # Each round draws different prompts and samples.
    config["seed"] = (int(config.get("seed", pipeline.seed)) + 1000 * max(0, round_ - 1)) % SEED_LIMIT
    config |= spec_named(str(config.get("stage"))).round_settings(round_)
    tracking: Mapping[str, Any] = config.get("tracking") or {}
    config["tracking"] = {"group": pipeline.name, **{k: v for k, v in tracking.items() if v is not None}}
    return build(config, inputs)


def _evaluate(pipeline: PipelineStage, run: RunDir, done: list[FinishedStage]) -> None:
    """Measure the policies of all stages and print the summary, if `evaluation` is set."""
    if pipeline.evaluation is None:
        return
    from quadriga.orchestrator.evaluation.report import summary

    policies = [d for d in done if "policy" in d.outputs]
    stages = [(label(d, policies), d.output("policy"), _seconds(d.run)) for d in policies]
    rewards = [d.output("reward") for d in done if "reward" in d.outputs]
    summary(run, stages, rewards[-1] if rewards else None, pipeline.evaluation, pipeline.cluster, pipeline.seed)


def label(stage: FinishedStage, among: list[FinishedStage]) -> str:
    """Return a stage's name, with its round if several stages have that name."""
    several = sum(d.name == stage.name for d in among) > 1
    return f"{stage.name}-{stage.round}" if several else stage.name


def _seconds(run: RunDir) -> float:
    """Return the wall-clock seconds of all attempts of a run."""
    from datetime import datetime

    attempts = [a for a in run.read_run().get("attempts", []) if a.get("ended")]
    spans = (datetime.fromisoformat(a["ended"]) - datetime.fromisoformat(a["started"]) for a in attempts)
    return sum(span.total_seconds() for span in spans)
