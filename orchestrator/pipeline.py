"""A pipeline: stages in a row, then rounds of the stages that repeat. Finished ones are skipped when it runs again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quadriga.data.errors import UserError
from quadriga.data.rundir import RunDir
from quadriga.orchestrator.attempt import INTERRUPTED, record_failure, run_stage, versions
from quadriga.orchestrator.cluster.processes import connected
from quadriga.orchestrator.settings import PipelineStage, StageEntry

OUTPUTS = {
    "pretrain": {"policy": "export/policy"},
    "sft": {"policy": "export/policy"},
    "rank": {"rankings": "export/rankings.jsonl"},
    "reward": {"reward": "export/reward"},
    "ppo": {"policy": "export/policy", "critic": "export/critic"},
}
"""Stage -> output -> where it lies in the stage's run directory."""

LISTS = ("earlier_rankings",)
"""Settings that take a list of paths: empty in the first round."""


@dataclass(frozen=True)
class FinishedStage:
    """One stage that was run (or found finished): its entry's name, its kind, its round and its directory."""

    name: str
    stage: str
    round: int
    run: RunDir

    def output(self, name: str) -> str:
        """Path of one of its outputs."""
        return str(self.run.path / OUTPUTS[self.stage][name])


def run_pipeline(pipeline: PipelineStage, run: RunDir, build: Callable[..., Any], allowed: Sequence[str] = ()) -> int:
    """Run every stage in order; returns the exit code. All stages share one Ray cluster.

    build: (stage's raw config, inputs by `key.path`) -> validated stage. allowed: as in `run`.
    Raises what a stage raises; earlier stages stay finished.
    """
    run.start_attempt(versions())
    run.write_config(pipeline.model_dump(mode="json"))
    done: list[FinishedStage] = []
    try:
        with connected(pipeline.cluster):
            for round_, entry in schedule(pipeline):
                folder = run.path / f"round-{round_}" / entry.name
                settings = _settings(pipeline, entry, round_, folder, done, build)
                if not run_stage(settings, RunDir.create(folder), allowed):
                    run.end_attempt("interrupted")
                    return INTERRUPTED
                done.append(FinishedStage(entry.name, settings.stage, round_, RunDir(folder)))
            publish_results(run, done)
            _evaluate(pipeline, run, done)
    except BaseException as error:
        raise record_failure(run, error) from None
    run.end_attempt("finished")
    return 0


def schedule(pipeline: PipelineStage) -> Iterator[tuple[int, StageEntry]]:
    """(round, entry) in order: `stages` are round 0, `repeat` are rounds 1 to `rounds`."""
    yield from ((0, entry) for entry in pipeline.stages)
    for number in range(1, pipeline.rounds + 1):
        yield from ((number, entry) for entry in pipeline.repeat)


def resolve_inputs(entry: StageEntry, done: list[FinishedStage]) -> dict[str, Any]:
    """An entry's inputs as paths: the newest output of that name, of a list of names the first that exists.

    Raises UserError when an input names no earlier stage's output.
    """
    resolved: dict[str, Any] = {}
    for key, wanted in entry.inputs.items():
        names = [wanted] if isinstance(wanted, str) else wanted
        found = [path for name in names for path in _outputs(name, done)[:1]]
        if key in LISTS:
            resolved[key] = _outputs(names[0], done)[:1]
        elif found:
            resolved[key] = found[0]
        else:
            have = ", ".join(f"{d.name}.{output}" for d in done for output in OUTPUTS[d.stage]) or "nothing yet"
            raise UserError(f"Stage {entry.name}: input {key} wants {' or '.join(names)}, but there is {have}.")
    return resolved


def publish_results(run: RunDir, done: list[FinishedStage]) -> None:
    """Copy the newest policy, critic and reward model to the pipeline's own export/."""
    import shutil

    from quadriga.data.atomic_files import publish

    for name in ("policy", "critic", "reward"):
        newest = [d for d in done if name in OUTPUTS[d.stage]]
        if not newest:
            continue
        temporary = run.export_dir / f".{name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(newest[-1].output(name), temporary)
        publish(temporary, run.export_dir / name)


def _outputs(name: str, done: list[FinishedStage]) -> list[str]:
    """Outputs called `<entry>.<output>`, newest first."""
    entry, _, output = name.partition(".")
    return [d.output(output) for d in reversed(done) if d.name == entry and output in OUTPUTS[d.stage]]


def _settings(
    pipeline: PipelineStage,
    entry: StageEntry,
    round_: int,
    folder: Path,
    done: list[FinishedStage],
    build: Callable[..., Any],
) -> Any:
    """The entry's stage with its inputs, its own directory, its round's seed and the pipeline's W&B group."""
    inputs = resolve_inputs(entry, done)
    config: dict[str, Any] = dict(entry.config)
    config["run_dir"] = str(folder)
    # A round draws other prompts and samples than the one before it.
    config["seed"] = int(config.get("seed", pipeline.seed)) + 1000 * max(0, round_ - 1)
    if config.get("stage") == "rank":
        config["round"] = max(1, round_)
    tracking: Mapping[str, Any] = config.get("tracking") or {}
    config["tracking"] = {"group": pipeline.name, **{k: v for k, v in tracking.items() if v is not None}}
    return build(config, inputs)


def _evaluate(pipeline: PipelineStage, run: RunDir, done: list[FinishedStage]) -> None:
    if pipeline.evaluation is None:
        return
    from quadriga.orchestrator.evaluation.report import summary

    policies = [d for d in done if "policy" in OUTPUTS[d.stage]]
    stages = [(label(d, policies), d.output("policy"), _seconds(d.run)) for d in policies]
    rewards = [d.output("reward") for d in done if d.stage == "reward"]
    summary(run, stages, rewards[-1] if rewards else None, pipeline.evaluation, pipeline.cluster, pipeline.seed)


def label(stage: FinishedStage, among: list[FinishedStage]) -> str:
    """A stage's name, with its round where several have that name."""
    several = sum(d.name == stage.name for d in among) > 1
    return f"{stage.name}-{stage.round}" if several else stage.name


def _seconds(run: RunDir) -> float:
    """Wall-clock seconds of all attempts of a run."""
    from datetime import datetime

    attempts = [a for a in run.read_run().get("attempts", []) if a.get("ended")]
    spans = (datetime.fromisoformat(a["ended"]) - datetime.fromisoformat(a["started"]) for a in attempts)
    return sum(span.total_seconds() for span in spans)
