"""Checks of a config before anything starts: placement, reward functions, models and data."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from quadriga.actors.model.folder import check_same_tokenizer, model_path
from quadriga.actors.runtime.device import cores
from quadriga.actors.settings import ModelSettings, Role, SamplingSettings
from quadriga.data.errors import UserError, nearest
from quadriga.launch.checks import model as model_checks
from quadriga.launch.checks.report import CheckReport, CheckResult, gpu_count
from quadriga.launch.config.error_messages import summary
from quadriga.launch.config.load import is_placeholder, single_stages
from quadriga.launch.config.unused_settings import unused_on_this_machine
from quadriga.orchestrator.attempt import trainer_class
from quadriga.orchestrator.cluster.placement import Machine, Placement, place, resource_requests
from quadriga.orchestrator.pipeline_settings import PipelineStage, StageEntry
from quadriga.orchestrator.rewards.base import require_no_model
from quadriga.orchestrator.settings import StageBase
from quadriga.orchestrator.stages.registry import AnyStage, spec_of

MIN_TEMPERATURE = 0.01
"""Lowest temperature above 0 at which vLLM samples: it raises lower ones to it."""


def check_config(stage: AnyStage) -> list[CheckResult]:
    """Check everything that a stage, or every stage of a pipeline, needs. Does not start Ray, DeepSpeed or vLLM."""
    report = CheckReport()
    if isinstance(stage, PipelineStage):
        _check_pipeline(stage, report)
    else:
        _check_stage(stage, report, stage.name)
    return report.results


def require_sound(stage: AnyStage) -> list[str]:
    """Return the notes of `check_config`. Raises UserError, one paragraph for all problems, if there are any."""
    results = check_config(stage)
    problems = [
        result.text if result.subject == stage.name else f"Stage `{result.subject}`: {result.text}"
        for result in results
        if result.level == "problem"
    ]
    if problems:
        raise UserError(summary(problems))
    return list(dict.fromkeys(result.text for result in results if result.level == "note"))


def _check_pipeline(pipeline: PipelineStage, report: CheckReport) -> None:
    stages = dict(single_stages(pipeline))
    made = {name: spec_of(stage) for name, stage in stages.items()}
    generates = any(made[name].engine(stage) for name, stage in stages.items())
    for entry in pipeline.entries:
        stage = stages[entry.name]
        _check_stage(stage, report, entry.name)
        report.run(_check_inputs, entry, {name: made[name].makes(each) for name, each in stages.items()})
        # Later stages generate with the model that it makes.
        for model in made[entry.name].models(stage) if generates else []:
            if model.fresh:
                report.run(_check_cpu_generation, model.source, stage)
    if pipeline.evaluation is not None:
        report.subject = "evaluation"
        report.run(require_no_model, pipeline.evaluation.gold_reward, "evaluation.gold_reward")
        report.run(pipeline.evaluation.gold_reward.check)
        report.run(model_checks.check_rows, pipeline.evaluation.prompts.data)


def _check_inputs(entry: StageEntry, made: Mapping[str, Mapping[str, str]]) -> None:
    """Check that every input names an output of its stage. made: name of an entry -> its outputs."""
    for key, source in entry.inputs.items():
        for wanted in [source] if isinstance(source, str) else source:
            name, _, output = wanted.partition(".")
            if output not in made[name]:
                raise UserError(f"Input `{key}`: `{wanted}` is not an output of {name}{nearest(output, made[name])}")


def _check_stage(stage: StageBase, report: CheckReport, subject: str) -> None:
    report.subject, spec = subject, spec_of(stage)
    report.run(_check_settings, stage)
    report.run(_check_local_placement, stage)
    for note in unused_on_this_machine(stage.cluster, gpu_count() > 0):
        report.note(note)
    for reward in spec.rewards(stage):
        report.run(reward.check)
    sound = {model.key: report.run(model_checks.check_model, model.source) for model in spec.models(stage)}
    engine = spec.engine(stage)
    if engine is not None and sound[engine.key]:
        report.run(_check_cpu_generation, engine.source, stage)
        report.run(check_tensor_parallel, stage)
    if all(sound.values()):
        for path in _scorers(stage):
            report.run(model_checks.check_reward_model, path)
        _check_data(stage, report)
    if all(result.level != "problem" for result in report.results):
        report.run(_check_trainer, stage)  # takes seconds, and a run needs the same import next


def _check_trainer(stage: StageBase) -> None:
    """Check that the stage's trainer can be imported."""
    trainer_class(stage)


def _check_settings(stage: StageBase) -> None:
    """Check that no settings contradict each other."""
    spec = spec_of(stage)
    for model in spec.models(stage):
        if model.source.shape is not None and not model.fresh:
            model_path(model.source, model.key)
    sampling = spec.sampling(stage)
    if sampling is not None and sampling.temperature == 0:
        raise UserError("`sampling.temperature` is 0: every answer to a prompt would be the same. Set it above 0.")
    if sampling is not None and any(model.trained for model in spec.models(stage)):
        _check_trained_sampling(sampling)
    spec.check(stage)


def _check_trained_sampling(sampling: SamplingSettings) -> None:
    """Check that answers which are trained on are drawn from the distribution that the trainer computes."""
    whole = "the trainer computes log-probs over the whole vocabulary, so those of the engine would be of another one"
    if sampling.top_p < 1:
        raise UserError(f"`sampling.top_p` is {sampling.top_p:g}, which cuts the distribution: {whole}. Set it to 1.")
    if sampling.top_k > 0:
        raise UserError(f"`sampling.top_k` is {sampling.top_k}, which cuts the distribution: {whole}. Set it to 0.")
    if sampling.temperature < MIN_TEMPERATURE:
        raise UserError(
            f"`sampling.temperature` is {sampling.temperature:g}, and vLLM samples at {MIN_TEMPERATURE:g} or above: "
            "the trainer's log-probs would be those of another distribution. Raise it."
        )


def _check_data(stage: StageBase, report: CheckReport) -> None:
    """Check tokenizer, template, context and a sample of the rows; before the model exists, only the rows."""
    spec = spec_of(stage)
    model, folder = spec.models(stage)[0].source, spec.tokenizer(stage).folder
    report.run(model_checks.check_context, model, *spec.longest(stage))
    rows = [data for data in spec.datasets(stage) if not model_checks.made_later(data.source)]
    if folder is None or is_placeholder(folder):
        for data in rows:
            report.run(model_checks.check_rows, data.source)
        return
    templates = dict.fromkeys((data.source.chat_template, data.form) for data in rows)
    if all([report.run(model_checks.check_tokenizer, folder, *template, model) for template in templates]):
        for data in rows:
            report.run(model_checks.check_data, data, stage.seed, folder)
    for path in _scorers(stage):
        if not is_placeholder(path):
            for template, _ in templates:
                report.run(check_same_tokenizer, folder, path, template)


def _scorers(stage: StageBase) -> list[str]:
    """Return the folders of the models that score answers: frozen ones with a scalar head."""
    models = spec_of(stage).models(stage)
    return [model.source.path for model in models if model.head == "scalar" and not model.trained and model.source.path]


def _check_local_placement(stage: StageBase) -> None:
    """Check that this machine has the cores or GPUs for every process. Other clusters are checked when they are up."""
    cluster = stage.cluster
    if cluster.address is not None or cluster.ssh is not None:
        return
    device = ("cuda" if gpu_count() else "cpu") if cluster.device == "auto" else cluster.device
    if device == "cuda" and not gpu_count():
        raise UserError("`cluster.device` is cuda, but torch finds no GPU here. Set it to cpu, or join a cluster.")
    check_placement(stage, device, [Machine("this machine", cores(), gpu_count())])


def check_placement(stage: StageBase, device: str, machines: Sequence[Machine]) -> Placement:
    """Return the slot of every process of a stage. Raises UserError when the machines cannot hold them."""
    spec = spec_of(stage)
    roles: list[Role] = [model.role for model in spec.hosted(stage) if model.role != "rollout"]
    requests = resource_requests(stage.cluster, roles, spec.engine(stage) is not None)
    return place(requests, device, stage.cluster.placement, machines)


def check_tensor_parallel(stage: StageBase) -> None:
    """Check that the policy of a stage, if it is on this machine, can be split over `tensor_parallel` GPUs."""
    engine = spec_of(stage).engine(stage)
    if engine is not None and engine.source.path and Path(engine.source.path).is_dir():
        model_checks.check_tensor_parallel(engine.source, stage.cluster.rollout.tensor_parallel)


def _check_cpu_generation(model: ModelSettings, stage: StageBase) -> str | None:
    """Check that vLLM can generate with the model if it runs on CPU."""
    if stage.cluster.device == "cuda" or (stage.cluster.device == "auto" and gpu_count()):
        return None
    return model_checks.check_cpu_head_size(model)
