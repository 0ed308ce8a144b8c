"""Unused settings: keys that were changed but have no effect beside the others.

They are errors, except under `cluster:` where it depends on the machine: those are only reported.
"""

from collections.abc import Iterator

from pydantic import BaseModel

from quadriga.actors.settings import ClusterSettings, ModelWorkerSettings, OptimizerSettings, SamplingSettings
from quadriga.data.settings import Source
from quadriga.launch.config.document import KeyPath, dotted
from quadriga.orchestrator.pipeline_settings import PipelineStage
from quadriga.orchestrator.settings import StageBase
from quadriga.orchestrator.stages.base import UnusedKey
from quadriga.orchestrator.stages.registry import AnyStage, spec_of


def find_unused(stage: AnyStage) -> list[tuple[KeyPath, str]]:
    """Return the keys of a stage that differ from their defaults but have no effect."""
    return [
        (path + key, reason)
        for path, section in _sections(stage, ())
        for key, reason in _unused_keys(section)
        if _differs_from_default(section, key)
    ]


def unused_on_this_machine(cluster: ClusterSettings, cuda: bool) -> list[str]:
    """Return a sentence per changed key of `cluster:` that has no effect on this kind of device. Never an error.

    cuda: whether this machine has a GPU.
    """
    if cuda:
        return []
    roles = [name for name, field in ClusterSettings.model_fields.items() if field.annotation is ModelWorkerSettings]
    keys: list[KeyPath] = [(role, key) for role in roles for key in ("gpus", "offload")]
    keys += [("rollout", "gpus"), ("rollout", "tensor_parallel")]
    return [
        f"`cluster.{dotted(key)}` has no effect without a GPU." for key in keys if _differs_from_default(cluster, key)
    ]


def _unused_keys(section: BaseModel) -> Iterator[UnusedKey]:
    """Yield the keys that have no effect given the section's other settings, changed or not."""
    match section:
        case OptimizerSettings(schedule="constant"):
            yield ("min_lr_ratio",), "the `constant` schedule never lowers the learning rate"
        case SamplingSettings(temperature=0.0):
            for key in ("top_p", "top_k"):
                yield (key,), "temperature 0 always takes the likeliest token"
        case Source(builtin=None):
            yield ("seed",), "only `builtin` rows are generated from a seed"
        case Source():
            yield ("columns",), "`builtin` rows already have the right column names"
        case PipelineStage(repeat=[]):
            yield ("rounds",), "`repeat` names no stages"
        case StageBase():
            yield from _unused_in_stage(section)
            yield from spec_of(section).unused(section)


def _unused_in_stage(stage: StageBase) -> Iterator[UnusedKey]:
    """Yield the keys that every stage has, but that have no effect in this one."""
    checkpoint, faults = stage.checkpoint, stage.faults.planned
    if checkpoint.every_steps is None and checkpoint.every_minutes is None:
        for key in ("keep", "keep_best"):
            reason = "without `every_steps` or `every_minutes` only the last step is saved"
            yield ("checkpoint", key), reason
    late = [fault.step for fault in faults if fault.step > stage.total_steps]
    if late:
        yield ("faults", "planned"), f"a fault is planned in step {late[0]} of {stage.total_steps}"
    if faults:
        targets = {"driver", *(model.role for model in spec_of(stage).models(stage))}
        absent = [fault.role for fault in faults if fault.role not in targets]
        if absent:
            yield ("faults", "planned"), f"a stage of this kind has no {absent[0]}"
    if not stage.tracking.wandb:
        yield ("tracking", "project"), "`tracking.wandb` is off"


def _differs_from_default(section: BaseModel, key: KeyPath) -> bool:
    """Return whether a setting differs from its default.

    Whether it was written does not count: a resolved config, which spells out all defaults, must load again.
    """
    *parents, last = map(str, key)
    for part in parents:
        section = getattr(section, part)
    return bool(getattr(section, last) != type(section).model_fields[last].get_default(call_default_factory=True))


def _sections(section: BaseModel, path: KeyPath) -> Iterator[tuple[KeyPath, BaseModel]]:
    """Yield a section and every section below it, with their paths."""
    yield path, section
    for name in type(section).model_fields:
        value = getattr(section, name)
        for index, item in enumerate(value if isinstance(value, list) else []):
            if isinstance(item, BaseModel):
                yield from _sections(item, (*path, name, index))
        if isinstance(value, BaseModel):
            yield from _sections(value, (*path, name))
