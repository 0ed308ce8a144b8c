"""Checks of a config before anything starts: placement, reward functions, models and data."""

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
from quadriga.orchestrator.cluster.placement import Machine, Placement, place, resource_requests
from quadriga.orchestrator.pipeline_settings import PipelineStage, StageEntry
from quadriga.orchestrator.rewards.base import RewardSettings
from quadriga.orchestrator.settings import StageBase, TrainStage
from quadriga.orchestrator.stages.ppo.spec import PpoStage
from quadriga.orchestrator.stages.pretrain.spec import PretrainStage
from quadriga.orchestrator.stages.rank.spec import RankStage
from quadriga.orchestrator.stages.registry import GeneratingStage
from quadriga.orchestrator.stages.reward_model.spec import RewardStage


def check_config(stage: Any) -> list[CheckResult]:
    """Check everything that a stage, or every stage of a pipeline, needs. Does not start Ray, DeepSpeed or vLLM."""
    report = CheckReport()
    if isinstance(stage, PipelineStage):
        _check_pipeline(stage, report)
    else:
        _check_stage(stage, report, stage.name)
    return report.results


def require_sound(stage: Any) -> list[str]:
    """Return the notes of `check_config`. Raises UserError, one paragraph for all problems, if there are any."""
    results = check_config(stage)
    problems = [result for result in results if result.level == "problem"]
    if problems:
        named = isinstance(stage, PipelineStage)
        raise UserError(summary([f"Stage `{each.subject}`: {each.text}" if named else each.text for each in problems]))
    return list(dict.fromkeys(result.text for result in results if result.level == "note"))


def _check_pipeline(pipeline: PipelineStage, report: CheckReport) -> None:
    entries = [*pipeline.stages, *pipeline.repeat]
    stages = single_stages(pipeline)
    made = {entry.name: stage.stage for entry, stage in zip(entries, stages, strict=True)}
    generates = any(isinstance(stage, GeneratingStage) for stage in stages)
    for entry, stage in zip(entries, stages, strict=True):
        _check_stage(stage, report, entry.name)
        report.run(_check_inputs, entry, made)
        # Later stages generate with the model that it trains.
        if generates and isinstance(stage, PretrainStage):
            report.run(_check_cpu_generation, stage.model, stage)
    if pipeline.evaluation is not None:
        report.subject = "evaluation"
        report.run(pipeline.evaluation.gold_reward.check)
        report.run(model_checks.check_rows, pipeline.evaluation.prompts.data)


def _check_inputs(entry: StageEntry, made: dict[str, str]) -> None:
    """Check that every input names an output of its stage. made: name of an entry -> its `stage:` value."""
    from quadriga.orchestrator.pipeline import OUTPUTS

    for key, source in entry.inputs.items():
        for wanted in [source] if isinstance(source, str) else source:
            name, _, output = wanted.partition(".")
            if output not in OUTPUTS[made[name]]:
                raise UserError(
                    f"Input `{key}`: `{wanted}` is not an output of {name}{nearest(output, OUTPUTS[made[name]])}"
                )


def _check_stage(stage: Any, report: CheckReport, subject: str) -> None:
    report.subject = subject
    report.run(_check_settings, stage)
    report.run(_check_local_placement, stage)
    for note in unused_on_this_machine(stage.cluster, gpu_count() > 0):
        report.note(note)
    for reward in _rewards(stage):
        report.run(reward.check)
    sound = [report.run(model_checks.check_model, model) for model in _models(stage)]
    if isinstance(stage, GeneratingStage) and sound[0]:
        report.run(_check_cpu_generation, stage.policy, stage)
        report.run(check_tensor_parallel, stage)
    if all(sound):
        if isinstance(stage, PpoStage) and stage.reward_path is not None:
            report.run(model_checks.check_reward_model, stage.reward_path)
        _check_data(stage, report)


def _check_data(stage: Any, report: CheckReport) -> None:
    """Check tokenizer, template, context and a sample of the rows; if there is no model yet, only the rows."""
    model = stage.model if isinstance(stage, TrainStage) else stage.policy
    folder = (stage.tokenizer.path if isinstance(stage, PretrainStage) else None) or model.path
    data = stage.data if isinstance(stage, TrainStage) else stage.prompts
    if isinstance(stage, TrainStage):
        report.run(model_checks.check_context, model, data.max_tokens, "data.max_tokens")
    else:
        longest, keys = data.max_tokens + stage.sampling.max_tokens, "prompts.max_tokens + sampling.max_tokens"
        report.run(model_checks.check_context, model, longest, keys)
    if model_checks.made_later(data):
        return
    if folder is None or is_placeholder(folder):
        report.run(model_checks.check_rows, data)
        return
    if report.run(model_checks.check_tokenizer, folder, data.chat_template, model):
        report.run(model_checks.check_data, stage, folder)
    if isinstance(stage, PpoStage) and stage.reward_path and not is_placeholder(stage.reward_path):
        from quadriga.actors.model.folder import check_same_tokenizer

        report.run(check_same_tokenizer, folder, stage.reward_path)


def _models(stage: Any) -> Iterator[ModelSettings]:
    """Yield the models that a stage starts from, the policy first."""
    for name in ("model", "policy", "reference", "critic"):
        model = getattr(stage, name, None)
        if model is not None:
            yield model
    if isinstance(stage, PpoStage) and stage.reward_path is not None:
        yield ModelSettings(path=stage.reward_path, shape=None)


def _rewards(stage: Any) -> Iterator[RewardSettings]:
    if isinstance(stage, PpoStage):
        yield from (reward for reward in (stage.reward, stage.gold_reward) if reward is not None)
    if isinstance(stage, RankStage):
        yield stage.annotator


def _check_settings(stage: Any) -> None:
    """Check that no settings contradict each other."""
    from quadriga.actors.model.folder import model_path

    for name in ("model", "policy", "reference", "critic"):
        model = getattr(stage, name, None)
        if model is not None and model.shape is not None and not isinstance(stage, PretrainStage):
            model_path(model, name)
    if isinstance(stage, GeneratingStage) and stage.sampling.temperature == 0:
        raise UserError("`sampling.temperature` is 0: every answer to a prompt would be the same. Set it above 0.")
    if (
        isinstance(stage, PpoStage)
        and stage.algorithm.needs_critic
        and stage.critic is None
        and stage.reward_path is None
    ):
        raise UserError(
            "The critic starts from the reward model, and a function is not a model. Name a model folder with "
            "`critic.path`, for example the policy's."
        )
    if isinstance(stage, RankStage):
        fewest, most = stage.answers_per_prompt
        if not 2 <= fewest <= most:
            raise UserError(
                f"`answers_per_prompt` is [{fewest}, {most}]: both must be at least 2, the smaller number first."
            )


def _check_local_placement(stage: Any) -> None:
    """Check that this machine has the cores or GPUs for every process. Other clusters are checked when they are up."""
    cluster = stage.cluster
    if cluster.address is not None or cluster.ssh is not None:
        return
    device = ("cuda" if gpu_count() else "cpu") if cluster.device == "auto" else cluster.device
    if device == "cuda" and not gpu_count():
        raise UserError("`cluster.device` is cuda, but torch finds no GPU here. Set it to cpu, or join a cluster.")
    check_placement(stage, device, [Machine("this machine", cores(), gpu_count())])


def check_placement(stage: Any, device: str, machines: Sequence[Machine]) -> Placement:
    """Return the slot of every process of a stage. Raises UserError when the machines cannot hold them."""
    requests = resource_requests(stage.cluster, _roles(stage), isinstance(stage, GeneratingStage))
    return place(requests, device, stage.cluster.placement, machines)


def single_stages(stage: Any) -> list[Any]:
    """Return the stage in a list, or the stages of a pipeline, with placeholders for their inputs."""
    if not isinstance(stage, PipelineStage):
        return [stage]
    return [build(entry.config, placeholders(entry)) for entry in [*stage.stages, *stage.repeat]]


def _roles(stage: Any) -> list[Role]:
    """Return the roles of the models that a stage holds in worker processes."""
    if isinstance(stage, PpoStage):
        rewards: list[Role] = ["reward"] if stage.reward_path else []
        critics: list[Role] = ["critic"] if stage.algorithm.needs_critic else []
        return ["actor", *critics, "reference", *rewards]
    if isinstance(stage, RewardStage):
        return ["reward"]
    return ["actor"] if isinstance(stage, TrainStage) else []


def check_tensor_parallel(stage: Any) -> None:
    """Check that the policy of a stage, if it is on this machine, can be split over `tensor_parallel` GPUs."""
    if isinstance(stage, GeneratingStage) and stage.policy.path and Path(stage.policy.path).is_dir():
        model_checks.check_tensor_parallel(stage.policy, stage.cluster.rollout.tensor_parallel)


def _check_cpu_generation(model: ModelSettings, stage: StageBase) -> str | None:
    """Check that vLLM can generate with the model if it runs on CPU."""
    if stage.cluster.device == "cuda" or (stage.cluster.device == "auto" and gpu_count()):
        return None
    return model_checks.check_cpu_head_size(model)
