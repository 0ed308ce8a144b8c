"""`quadriga eval RUN --suite NAME=PATH`: suites measured on one model or two, tables, paired comparisons."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from quadriga.actors.model.folder import context_length
from quadriga.actors.model.heads import ModelSpec
from quadriga.actors.settings import ClusterSettings
from quadriga.orchestrator.cluster.processes import ModelUse, RolloutPlan, connected, processes
from quadriga.orchestrator.evaluation.evaluate import logs_folder
from quadriga.orchestrator.evaluation.statistics import Paired, paired_difference
from quadriga.orchestrator.evaluation.suites.base import AnswerSuite, ChoiceSuite, Outcomes
from quadriga.orchestrator.evaluation.suites.loaded import intervals, load_suites
from quadriga.orchestrator.faults.recovery import Recovery
from quadriga.orchestrator.model_folders import find_model
from quadriga.orchestrator.rollout.answer_text import answer_text
from quadriga.orchestrator.rollout.pool import RolloutPool
from quadriga.orchestrator.tracking.console import StageProgress, make_console


@dataclass(frozen=True)
class SuiteResult:
    """outcomes: of every metric and item. answers: by item, where there are any. left_out: items that were too long."""

    outcomes: Outcomes
    answers: dict[str, str]
    left_out: int


def evaluate_suites(
    target: str,
    suites: Mapping[str, str],
    against: str | None = None,
    *,
    rows: int | None = None,
    seed: int = 0,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure suites on a run, checkpoint or model, alone or against another; print a table.

    suites: name, or `module:Class`, -> path of its data. rows: number of items to take from the start of
    each file; None takes all.

    Returns {"suites": {suite: {"models": {name: {metric: {"mean", "low", "high", "n"}}}, "paired": {metric:
    {"difference", "low", "high", "p", "n"}}, "left_out", "items": {name: {metric: {item: outcome}}}, "answers": {name:
    {item: text}}}}}. Raises UserError for unknown names and files that are not of their suite.
    """
    console = console or make_console()
    targets = [find_model(name) for name in dict.fromkeys([target, against or target])]
    progress, logs = StageProgress("evaluation", target, console), logs_folder(targets[0])
    logs.mkdir(parents=True, exist_ok=True)
    results = {
        model.name: _measure(model.folder, suites, model.cluster, logs, rows, seed, progress, model.name)
        for model in targets
    }
    found = {}
    for suite in suites:
        own = {name: result[suite] for name, result in results.items()}
        paired = _paired(own[target].outcomes, own[against].outcomes) if against in own and against != target else {}
        found[suite] = {
            "models": {
                name: {metric: vars(interval) for metric, interval in intervals(result.outcomes).items()}
                for name, result in own.items()
            },
            "paired": {metric: vars(difference) for metric, difference in paired.items()},
            "left_out": own[target].left_out,
            "items": {name: result.outcomes for name, result in own.items()},
            "answers": {name: result.answers for name, result in own.items()},
        }
        console.print(_table(suite, own, paired))
        if own[target].left_out:
            console.print(f"  {own[target].left_out} items are longer than the model's context and were left out.")
    return {"suites": found}


def _measure(
    folder: str,
    suites: Mapping[str, str],
    cluster: ClusterSettings,
    logs: Path,
    rows: int | None,
    seed: int,
    progress: StageProgress,
    name: str,
) -> dict[str, SuiteResult]:
    """Return the results of one model, with only the processes that its suites need."""
    from quadriga.data.tokens.chat import end_tokens
    from quadriga.data.tokens.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    loaded = load_suites(suites, tokenizer, context_length(folder), rows)
    uses = [ModelUse("reference", ModelSpec(folder, "logprobs"))] if any(own.choices for own in loaded) else []
    longest = max((own.longest for own in loaded), default=0)
    plan = RolloutPlan(folder, longest, load=True) if longest else None
    recovery, results = Recovery(cluster.recovery), {}
    with (
        progress,
        connected(cluster) as dashboard,
        progress.waiting("starting processes"),
        processes(cluster, uses, plan, str(logs), on_loss=recovery.note) as running,
    ):
        progress.started(0, len(loaded), dashboard, None, running.logs)
        stops = end_tokens(tokenizer)
        pool = RolloutPool(running.fleet, stops, partial(answer_text, tokenizer, stops)) if plan else None
        for done, own in enumerate(loaded, 1):
            answers: dict[str, str] = {}
            if isinstance(own.suite, ChoiceSuite):
                outcomes = own.by_likelihood(running.groups["reference"])
            else:
                assert isinstance(own.suite, AnswerSuite)
                outcomes, texts = own.by_answers(pool, seed, progress.part(f"{name}: {own.name}"))
                answers = {item.id: text for (item, _), text in zip(own.asks, texts, strict=True)}
            results[own.name] = SuiteResult(outcomes, answers, own.left_out)
            progress.step(done, {})
    return results


def _paired(ours: Outcomes, theirs: Outcomes) -> dict[str, Paired]:
    """Return the difference of each metric over the items that both have an outcome for."""
    found = {}
    for metric in ours:
        both = [item for item in ours[metric] if item in theirs.get(metric, {})]
        if both:
            a, b = ([own[metric][item] for item in both] for own in (ours, theirs))
            found[metric] = paired_difference(a, b)
    return found


def _table(suite: str, results: Mapping[str, SuiteResult], paired: Mapping[str, Paired]) -> Table:
    table = Table(title=f"{suite} (95 % intervals)", title_justify="left")
    table.add_column("metric")
    for name in results:
        table.add_column(Text(name), justify="right", overflow="fold")
    if paired:
        table.add_column("difference, item by item", justify="right")
    for metric in next(iter(results.values())).outcomes:
        cells = [
            str(intervals(result.outcomes)[metric]) if metric in result.outcomes else "–" for result in results.values()
        ]
        table.add_row(Text(metric), *cells, *([str(paired[metric]) if metric in paired else "–"] if paired else []))
    return table
