"""Settings that would do nothing. Under `cluster:`, where that depends on the machine, they are only reported."""

from collections.abc import Iterator

from pydantic import BaseModel

from quadriga.actors.settings import ClusterSettings, ModelWorkerSettings, OptimizerSettings, SamplingSettings
from quadriga.data.settings import Source
from quadriga.launch.config.document import KeyPath, dotted
from quadriga.orchestrator.settings import (
    PipelineStage,
    PpoStage,
    PretrainStage,
    RewardStage,
    SftStage,
    StageBase,
    TrainStage,
)

UnusedKey = tuple[KeyPath, str]

HOSTED: dict[type[BaseModel], tuple[str, ...]] = {
    PretrainStage: ("actor", "driver"),
    SftStage: ("actor", "driver"),
    RewardStage: ("reward", "driver"),
}
"""What can be lost, of the stages that do not have everything."""


def find_unused(stage: BaseModel) -> list[UnusedKey]:
    """Keys that were changed and would change nothing: key path and reason."""
    return [
        (path + key, reason)
        for path, section in _sections(stage, ())
        for key, reason in _unused_keys(section)
        if _changed(section, key)
    ]


def unused_on_this_machine(cluster: ClusterSettings, cuda: bool) -> list[str]:
    """Keys of `cluster:` that were changed and do nothing on this kind of device. Reported, never an error."""
    if cuda:
        return []
    roles = [name for name, field in ClusterSettings.model_fields.items() if field.annotation is ModelWorkerSettings]
    keys: list[KeyPath] = [(role, key) for role in roles for key in ("gpus", "offload")]
    keys += [("rollout", "gpus"), ("rollout", "tensor_parallel")]
    return [f"`cluster.{dotted(key)}` has no effect without a GPU." for key in keys if _changed(cluster, key)]


def _unused_keys(section: BaseModel) -> Iterator[UnusedKey]:
    """What would have no effect beside the section's other settings, if it was changed."""
    match section:
        case OptimizerSettings(schedule="constant"):
            yield ("min_lr_ratio",), "the `constant` schedule never lowers the learning rate"
        case SamplingSettings(temperature=0.0):
            for key in ("top_p", "top_k"):
                yield (key,), "temperature 0 always takes the likeliest token"
        case Source(builtin=None):
            yield ("seed",), "only `builtin` rows are generated from a seed"
        case Source():
            yield ("columns",), "`builtin` rows have our column names"
        case PipelineStage(repeat=[]):
            yield ("rounds",), "`repeat` names no stages"
    if isinstance(section, StageBase):
        saved = section.checkpoint
        if saved.every_steps is None and saved.every_minutes is None:
            for key in ("keep", "keep_best"):
                reason = "without `every_steps` or `every_minutes` there is one checkpoint, the last"
                yield ("checkpoint", key), reason
        late = [fault.step for fault in section.faults.planned if fault.step > section.total_steps]
        if late:
            yield ("faults", "planned"), f"a fault is planned in step {late[0]} of {section.total_steps}"
        hosted = next((roles for kind, roles in HOSTED.items() if isinstance(section, kind)), None)
        absent = [fault.role for fault in section.faults.planned if hosted and fault.role not in hosted]
        if absent:
            yield ("faults", "planned"), f"a stage of this kind has no {absent[0]}"
        if not section.tracking.wandb:
            yield ("tracking", "project"), "`tracking.wandb` is off"
    if isinstance(section, TrainStage) and not section.data.heldout and not section.data.heldout_fraction:
        yield ("heldout_every",), "nothing is held out (`data.heldout` or `data.heldout_fraction`)"
    if isinstance(section, SftStage) and section.heldout_every is None:
        yield ("stop_when_heldout_rises",), "held-out loss is measured only at the end without `heldout_every`"
    if isinstance(section, PretrainStage) and section.tokenizer.path is not None:
        yield ("tokenizer", "vocab_size"), "`tokenizer.path` names a tokenizer that is made already"
    if isinstance(section, PpoStage):
        samples = section.prompts_per_step * section.samples_per_prompt
        if section.algorithm.kl.coefficient == 0:
            yield ("algorithm", "kl", "adaptive"), "it multiplies `algorithm.kl.coefficient`, which is 0"
        if section.algorithm.minibatch_size > samples:
            yield ("algorithm", "minibatch_size"), f"a step has only {samples} samples"


def _changed(section: BaseModel, key: KeyPath) -> bool:
    """True when the setting is not at its default: a resolved config, which spells out all defaults, loads again."""
    *parents, last = map(str, key)
    for part in parents:
        section = getattr(section, part)
    return bool(getattr(section, last) != type(section).model_fields[last].get_default(call_default_factory=True))


def _sections(section: BaseModel, path: KeyPath) -> Iterator[tuple[KeyPath, BaseModel]]:
    yield path, section
    for name in type(section).model_fields:
        value = getattr(section, name)
        for index, item in enumerate(value if isinstance(value, list) else []):
            if isinstance(item, BaseModel):
                yield from _sections(item, (*path, name, index))
        if isinstance(value, BaseModel):
            yield from _sections(value, (*path, name))
