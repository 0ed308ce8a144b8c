"""What can be known to be wrong with a config before anything starts: placement, functions, models, data."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from quadriga.actors.runtime.device import cores
from quadriga.actors.settings import ModelSettings, Role
from quadriga.data.errors import UserError
from quadriga.launch.checks import model as model_checks
from quadriga.launch.checks.report import CheckReport, CheckResult, gpu_count
from quadriga.launch.config.error_messages import nearest, summary
from quadriga.launch.config.load import build, is_placeholder, placeholders
from quadriga.launch.config.unused_settings import unused_on_this_machine
from quadriga.orchestrator.algorithms.advantages import ESTIMATORS
from quadriga.orchestrator.cluster.placement import Machine, Placement, place, resource_requests
from quadriga.orchestrator.rewards.function_pool import RewardFunctionPool
from quadriga.orchestrator.settings import (
    GeneratingStage,
    PipelineStage,
    PpoStage,
    PretrainStage,
    RankStage,
    RewardFunctionSettings,
    RewardStage,
    StageBase,
    StageEntry,
    TrainStage,
)


def check_config(stage: Any) -> list[CheckResult]:
    """Look at everything that a stage, or every stage of a pipeline, needs. Starts no Ray, DeepSpeed or vLLM."""
    report = CheckReport()
    if isinstance(stage, PipelineStage):
        _inspect_pipeline(stage, report)
    else:
        _inspect_stage(stage, report, stage.name)
    return report.results


def require_sound(stage: Any) -> list[str]:
    """The notes of `check_config`. Raises UserError, one paragraph, when it finds a problem."""
    results = check_config(stage)
    problems = [result for result in results if result.level == "problem"]
    if problems:
        named = isinstance(stage, PipelineStage)
        raise UserError(summary([f"Stage `{each.subject}`: {each.text}" if named else each.text for each in problems]))
    return list(dict.fromkeys(result.text for result in results if result.level == "note"))


def _inspect_pipeline(pipeline: PipelineStage, report: CheckReport) -> None:
    entries = [*pipeline.stages, *pipeline.repeat]
    stages = single_stages(pipeline)
    made = {entry.name: stage.stage for entry, stage in zip(entries, stages, strict=True)}
    generates = any(isinstance(stage, GeneratingStage) for stage in stages)
    for entry, stage in zip(entries, stages, strict=True):
        _inspect_stage(stage, report, entry.name)
        report.run(_inputs_are_made, entry, made)
        # Its model is what later stages generate with.
        if generates and isinstance(stage, PretrainStage):
            report.run(_servable, stage.model, stage)
    if pipeline.evaluation is not None:
        report.subject = "evaluation"
        report.run(_function_imports, pipeline.evaluation.gold_reward)
        report.run(model_checks.data_reads, pipeline.evaluation.prompts.data)


def _inputs_are_made(entry: StageEntry, made: dict[str, str]) -> None:
    """Every input names something that its stage puts out. made: entry's name -> kind of stage."""
    from quadriga.orchestrator.pipeline import OUTPUTS

    for key, source in entry.inputs.items():
        for wanted in [source] if isinstance(source, str) else source:
            name, _, output = wanted.partition(".")
            if output not in OUTPUTS[made[name]]:
                raise UserError(
                    f"Input `{key}`: `{wanted}` is no output of {name}{nearest(output, OUTPUTS[made[name]])}"
                )


def _inspect_stage(stage: Any, report: CheckReport, subject: str) -> None:
    report.subject = subject
    report.run(_possible, stage)
    report.run(_placeable, stage)
    for note in unused_on_this_machine(stage.cluster, gpu_count() > 0):
        report.note(note)
    for function in _functions(stage):
        report.run(_function_imports, function)
    sound = [report.run(model_checks.loadable, model) for model in _models(stage)]
    if isinstance(stage, GeneratingStage) and sound[0]:
        report.run(_servable, stage.policy, stage)
        report.run(heads_divide, stage)
    if all(sound):
        if isinstance(stage, PpoStage) and stage.reward_path is not None:
            report.run(model_checks.reward_head_trained, stage.reward_path)
        _inspect_data(stage, report)


def _inspect_data(stage: Any, report: CheckReport) -> None:
    """Tokenizer, template, context and a sample of the rows; of a model that is not made yet, only the rows."""
    model = stage.model if isinstance(stage, TrainStage) else stage.policy
    folder = (stage.tokenizer.path if isinstance(stage, PretrainStage) else None) or model.path
    data = stage.data if isinstance(stage, TrainStage) else stage.prompts
    if isinstance(stage, TrainStage):
        report.run(model_checks.context_suffices, model, data.max_tokens, "data.max_tokens")
    else:
        longest, keys = data.max_tokens + stage.sampling.max_tokens, "prompts.max_tokens + sampling.max_tokens"
        report.run(model_checks.context_suffices, model, longest, keys)
    if model_checks.made_later(data):
        return
    if folder is None or is_placeholder(folder):
        report.run(model_checks.data_reads, data)
        return
    if report.run(model_checks.tokenizer_sound, folder, data.chat_template, model):
        report.run(model_checks.data_loads, stage, folder)
    if isinstance(stage, PpoStage) and stage.reward_path and not is_placeholder(stage.reward_path):
        from quadriga.actors.model.folder import check_same_tokenizer

        report.run(check_same_tokenizer, folder, stage.reward_path)


def _models(stage: Any) -> Iterator[ModelSettings]:
    """The models a stage starts from; the policy first."""
    for name in ("model", "policy", "reference", "critic"):
        model = getattr(stage, name, None)
        if model is not None:
            yield model
    if isinstance(stage, PpoStage) and stage.reward_path is not None:
        yield ModelSettings(path=stage.reward_path, shape=None)


def _functions(stage: Any) -> Iterator[RewardFunctionSettings]:
    if isinstance(stage, PpoStage):
        yield from (function for function in (stage.reward_function, stage.gold_reward) if function is not None)
    if isinstance(stage, RankStage):
        yield stage.annotator


def _possible(stage: Any) -> None:
    """Settings that contradict each other."""
    from quadriga.actors.model.folder import model_path

    for name in ("model", "policy", "reference", "critic"):
        model = getattr(stage, name, None)
        if model is not None and model.shape is not None and not isinstance(stage, PretrainStage):
            model_path(model, name)
    if isinstance(stage, GeneratingStage) and stage.sampling.temperature == 0:
        raise UserError("`sampling.temperature` is 0: every answer to a prompt would be the same. Set it above 0.")
    if isinstance(stage, PpoStage) and _has_critic(stage) and stage.critic is None and stage.reward_path is None:
        raise UserError(
            "The critic starts from the reward model, and a function is not a model. Name a model folder with "
            "`critic.path`; the policy's own will do."
        )
    if isinstance(stage, RankStage):
        fewest, most = stage.answers_per_prompt
        if not 2 <= fewest <= most:
            raise UserError(f"`answers_per_prompt` is [{fewest}, {most}]: give at least 2, the smaller number first.")


def _placeable(stage: Any) -> None:
    """The machine has the cores or GPUs for every process. A cluster to join is asked when the run has joined it."""
    cluster = stage.cluster
    if cluster.address is not None or cluster.ssh is not None:
        return
    device = ("cuda" if gpu_count() else "cpu") if cluster.device == "auto" else cluster.device
    if device == "cuda" and not gpu_count():
        raise UserError("`cluster.device` is cuda, but torch finds no GPU here. Set it to cpu, or join a cluster.")
    check_placement(stage, device, [Machine("this machine", cores(), gpu_count())])


def check_placement(stage: Any, device: str, machines: Sequence[Machine]) -> Placement:
    """Where every process of a stage would sit. Raises UserError when the machines cannot hold them."""
    requests = resource_requests(stage.cluster, _roles(stage), isinstance(stage, GeneratingStage))
    return place(requests, device, stage.cluster.placement, machines)


def single_stages(stage: Any) -> list[Any]:
    """A stage, or those of a pipeline, their inputs standing in as placeholders."""
    if not isinstance(stage, PipelineStage):
        return [stage]
    return [build(entry.config, placeholders(entry)) for entry in [*stage.stages, *stage.repeat]]


def _roles(stage: Any) -> list[Role]:
    """The models that a stage keeps in processes of their own."""
    if isinstance(stage, PpoStage):
        rewards: list[Role] = ["reward"] if stage.reward_path else []
        valued: list[Role] = ["critic"] if _has_critic(stage) else []
        return ["actor", *valued, "reference", *rewards]
    if isinstance(stage, RewardStage):
        return ["reward"]
    return ["actor"] if isinstance(stage, TrainStage) else []


def _has_critic(stage: PpoStage) -> bool:
    return ESTIMATORS[stage.algorithm.estimator].needs_critic  # type: ignore[attr-defined]


def _function_imports(function: RewardFunctionSettings) -> str:
    """In a subprocess, as the run itself does it: importing a user's module may do anything."""
    RewardFunctionPool(function.model_copy(update={"processes": 1})).close()
    return f"function {function.function} imports"


def heads_divide(stage: Any) -> None:
    """The model that a stage generates with can be cut over `tensor_parallel` GPUs, as far as it is here."""
    if isinstance(stage, GeneratingStage) and stage.policy.path and Path(stage.policy.path).is_dir():
        model_checks.heads_divide(stage.policy, stage.cluster.rollout.tensor_parallel)


def _servable(model: ModelSettings, stage: StageBase) -> str | None:
    """vLLM can generate with the model on this device."""
    if stage.cluster.device == "cuda" or (stage.cluster.device == "auto" and gpu_count()):
        return None
    return model_checks.head_size_served_on_cpu(model)
