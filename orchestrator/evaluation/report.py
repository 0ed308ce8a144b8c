"""Evaluation reports: `quadriga eval`, and the summary at the end of a pipeline."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from quadriga.actors.settings import ClusterSettings, SamplingSettings
from quadriga.data.atomic_files import write_json_atomic
from quadriga.data.rundir import RunDir
from quadriga.data.settings import Source
from quadriga.orchestrator.evaluation.evaluate import evaluate_models, logs_folder
from quadriga.orchestrator.evaluation.metrics import Evaluation, choose_prompts, compare
from quadriga.orchestrator.evaluation.settings import EvaluationPrompts, EvaluationSettings
from quadriga.orchestrator.evaluation.statistics import Interval
from quadriga.orchestrator.model_folders import find_model
from quadriga.orchestrator.rewards.function import RewardFunctionSettings
from quadriga.orchestrator.tracking.console import StageProgress, answers_table, make_console, stages_table

ASSISTANT = EvaluationSettings(
    prompts=EvaluationPrompts(rows=[Source(builtin="assistant.heldout_prompts", rows=320, seed=2000)], max_tokens=256),
    gold_reward=RewardFunctionSettings(type="function", function="quadriga.data.assistant.gold:gold"),
    sampling=SamplingSettings(max_tokens=32),
    rows=320,
)
"""Settings for a model outside a pipeline: the built-in assistant's held-out prompts and gold reward."""

SHOWN_PROMPTS = 6
"""Prompts whose answers the summary shows."""


def evaluate_run(
    target: str,
    against: str | None = None,
    *,
    rows: int | None = None,
    temperature: float | None = None,
    samples_per_prompt: int = 1,
    reward: str | None = None,
    seed: int = 0,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run `quadriga eval`: measure a run, checkpoint or model, alone or against another; print tables.

    Prompts, gold reward and sampling are those of the run's pipeline, else the built-in assistant's. reward: the reward
    model to score with; None takes the one that the run was trained with, if there is one.

    Returns {"models": {name: numbers}, "win_rate", "win_rate_greedy": {"mean", "low", "high", "n"} of target over
    against (None without one), "rows", "temperature"}. Raises UserError for unknown names and for models that cannot be
    compared.
    """
    console = console or make_console()
    targets = [find_model(name) for name in dict.fromkeys([target, against or target])]
    sections = (target.pipeline_section("evaluation", EvaluationSettings) for target in targets)
    settings = next((section for section in sections if section is not None), ASSISTANT)
    if rows is not None:
        settings = settings.model_copy(update={"rows": rows, "prompts": _with_rows(settings.prompts, rows)})
    if temperature is not None:
        sampling = settings.sampling.model_copy(update={"temperature": temperature})
        settings = settings.model_copy(update={"sampling": sampling})
    results = evaluate_models(
        {t.name: t.folder for t in targets},
        settings,
        targets[0].cluster,
        logs_folder(targets[0]),
        reward=find_model(reward, "reward").folder if reward else next((t.reward for t in targets if t.reward), None),
        reference=next((t.reference for t in targets if t.reference), None),
        seed=seed,
        samples_per_prompt=samples_per_prompt,
        progress=StageProgress("evaluation", target, console),
    )
    rates = _win_rates(results, target, against) if against in results and against != target else (None, None)
    console.print(evaluation_table(results))
    if any(result.by_kind for result in results.values()):
        console.print(kinds_table({name: result.as_dict() for name, result in results.items()}))
    for rate, how in zip(rates, (f"at temperature {settings.sampling.temperature:g}", "greedy"), strict=True):
        if rate is not None:
            console.print(_verdict(target, str(against), how, rate), soft_wrap=True)
    return {
        "models": {name: result.as_dict() for name, result in results.items()},
        "win_rate": _as_dict(rates[0]),
        "win_rate_greedy": _as_dict(rates[1]),
        "rows": len({answer.prompt for answer in results[target].answers}),
        "temperature": settings.sampling.temperature,
    }


def evaluation_table(results: Mapping[str, Evaluation]) -> Table:
    """Return a table with one row per model and way of drawing answers."""
    table = Table(title="Gold beside proxy", title_justify="left")
    table.add_column("model", overflow="fold")
    table.add_column("answers")
    titles = ("truthful", "harmless", "helpful", "gold", "refused", "abstained", "reward score", "KL", "ended")
    for title in titles:
        table.add_column(title, justify="right")
    for name, result in results.items():
        ways = {"sampled": result, "greedy": result.greedy, "best by reward": result.best}
        for way, m in ways.items():
            if m is not None:
                kl = result.kl if m is result else None
                gold = (m.truthful, m.harmless, m.helpful, m.score, m.refused, m.abstained)
                values = map(_number, (*gold, m.reward_score, kl, m.ended))
                table.add_row(Text(name if m is result else ""), way, *values)
    return table


def kinds_table(measures: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a table of gold scores by kind of prompt and by turn, with the shares of refusals and abstentions.

    measures: model name -> `Measures.as_dict`. Turns are shown where there is more than one.
    """
    table = Table(title="Gold by kind of prompt (refused, abstained)", title_justify="left")
    table.add_column("prompts")
    for name in measures:
        table.add_column(Text(name), justify="right", overflow="fold")
    first = next(iter(measures.values()))
    turns = [("by_turn", turn, f"turn {turn}") for turn in first["by_turn"]] if len(first["by_turn"]) > 1 else []
    for group, key, title in [*(("by_kind", kind, kind) for kind in first["by_kind"]), *turns]:
        if (group, key, title) == next(iter(turns), None):
            table.add_section()
        cells = [own[group].get(key, {}) for own in measures.values()]
        shares = (f"({_number(c.get('refused'))}, {_number(c.get('abstained'))})" for c in cells)
        table.add_row(Text(title), *(f"{_number(c.get('score'))} {s}" for c, s in zip(cells, shares, strict=True)))
    return table


def summary(
    run_dir: RunDir,
    stages: Sequence[tuple[str, str, float]],
    reward: str | None,
    settings: EvaluationSettings,
    cluster: ClusterSettings,
    seed: int,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure a pipeline's policies, write summary.json, print tables and next steps; return the summary.

    stages: (name, policy folder, seconds of training) in order, with distinct names. The last one is compared with the
    stage `sft` (without one, with the one before it), from which KL is measured too. An existing summary of the same
    inputs is printed without measuring again. Raises as `evaluate_models`.
    """
    console = console or make_console()
    file, inputs = run_dir.path / "summary.json", _inputs(stages, reward, settings, seed)
    result = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if result.get("inputs") != inputs:
        models = {name: folder for name, folder, _ in stages}
        base, last = base_and_last(list(models))
        results = evaluate_models(
            models,
            settings,
            cluster,
            run_dir.logs_dir,
            reward=reward,
            reference=models[base],
            seed=seed,
            progress=StageProgress("evaluation", run_dir.path.name, console),
        )
        result = summary_of(results, {name: seconds for name, _, seconds in stages}, base, last, seed)
        write_json_atomic(file, result | {"inputs": inputs})
    _show(result, run_dir, stages, console)
    return result


def base_and_last(names: Sequence[str]) -> tuple[str, str]:
    """Return (base, last): the last stage, and the one it is compared with, `sft` or else the one before it."""
    return ("sft" if "sft" in names else names[max(0, len(names) - 2)]), names[-1]


def summary_of(
    results: Mapping[str, Evaluation], seconds: Mapping[str, float], base: str, last: str, seed: int
) -> dict[str, Any]:
    """Return the content of summary.json.

    {"stages": [{"stage", "truthful", "harmless", "helpful", "reward_score", "kl", "seconds"}], "win_rate" and
    "win_rate_greedy": {"mean", "low", "high", "n"} of last over base (None if they are the same), "base", "measures":
    {stage: `Evaluation.as_dict`}, "answers": [{"kind", "prompt", "answers": {stage: text}}]}
    """
    rates = _win_rates(results, last, base) if last != base else (None, None)
    ours = results[last].answers
    shown = choose_prompts([answer.kind for answer in ours], SHOWN_PROMPTS, seed)
    return {
        "stages": [
            {
                "stage": name,
                "truthful": result.truthful,
                "harmless": result.harmless,
                "helpful": result.helpful,
                "reward_score": result.reward_score,
                "kl": result.kl,
                "seconds": seconds[name],
            }
            for name, result in results.items()
        ],
        "win_rate": _as_dict(rates[0]),
        "win_rate_greedy": _as_dict(rates[1]),
        "base": base,
        "measures": {name: result.as_dict() for name, result in results.items()},
        "answers": [
            {
                "kind": ours[index].kind,
                "prompt": ours[index].question,
                "answers": {name: results[name].answers[index].text for name in dict.fromkeys((base, last))},
            }
            for index in shown
        ],
    }


def _show(
    result: Mapping[str, Any], run_dir: RunDir, stages: Sequence[tuple[str, str, float]], console: Console
) -> None:
    """Print the tables, the win rates, and next steps."""
    names = [stage["stage"] for stage in result["stages"]]
    base, last = result["base"], names[-1]
    console.print(stages_table(result["stages"]))
    compared = {name: result["measures"][name] for name in dict.fromkeys((base, last))}
    if any(measures["by_kind"] for measures in compared.values()):
        console.print(kinds_table(compared))
    shown = result["answers"]
    columns = {name: [row["answers"][name] for row in shown] for name in dict.fromkeys((base, last))}
    kinds = [row["kind"] or "" for row in shown]
    console.print(answers_table([row["prompt"] for row in shown], columns, kinds if any(kinds) else ()))
    for rate, how in ((result["win_rate"], "at the training temperature"), (result["win_rate_greedy"], "greedy")):
        if rate is not None:
            console.print(_verdict(last, base, how, Interval(**rate)), soft_wrap=True)
    folders = {name: Path(folder) for name, folder, _ in stages}
    again = f" --against {_short(folders[base].parent.parent)}" if base != last else ""
    console.print(Text("Where to look next:", style="bold"))
    for title, pointer in (
        ("talk to it", f"quadriga chat {_short(run_dir.path)}"),
        ("measure it again", f"quadriga eval {_short(run_dir.path)}{again}"),
        ("the model", _short(folders[last])),
        ("its curves", _short(folders[last].parent.parent / "metrics.jsonl")),
        ("its answers while it learned", _short(folders[last].parent.parent / "samples")),
        ("this page as numbers", _short(run_dir.path / "summary.json")),
    ):
        console.print(Text(f"  {title}: {pointer}"), soft_wrap=True)


def _short(path: Path) -> str:
    """Return a path relative to the working directory if it is below it, else unchanged."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _verdict(ours: str, theirs: str, how: str, rate: Interval) -> Text:
    """Return the sentence about a win rate."""
    return Text(f"{ours} wins against {theirs} {how}: {rate} (95 %, by gold, ties count half)")


def _inputs(
    stages: Sequence[tuple[str, str, float]], reward: str | None, settings: EvaluationSettings, seed: int
) -> str:
    """Return a hash of everything that the numbers depend on; a model counts by its path and time of writing."""
    written = {folder: (Path(folder) / "config.json").stat().st_mtime_ns for _, folder, _ in stages}
    parts = [list(stages), written, reward, settings.model_dump(mode="json"), seed]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _with_rows(prompts: EvaluationPrompts, rows: int) -> EvaluationPrompts:
    """Return the prompts with enough rows in the built-in tables, which are generated on demand."""
    grown = [s.model_copy(update={"rows": max(rows, s.rows or 0)}) if s.builtin else s for s in prompts.rows]
    return prompts.model_copy(update={"rows": grown})


def _win_rates(results: Mapping[str, Evaluation], ours: str, theirs: str) -> tuple[Interval | None, Interval | None]:
    """Return the win rates at the sampling temperature and with greedy decoding."""
    a, b = results[ours], results[theirs]
    return compare(a, b), compare(a.greedy, b.greedy) if a.greedy and b.greedy else None


def _as_dict(rate: Interval | None) -> dict[str, float] | None:
    return {"mean": rate.mean, "low": rate.low, "high": rate.high, "n": rate.n} if rate else None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
