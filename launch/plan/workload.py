"""Models that a stage keeps in processes, and the tokens that one step of it moves through them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from quadriga.actors.model.folder import read_config
from quadriga.actors.model.heads import Head
from quadriga.actors.settings import ClusterSettings, ModelSettings, PlacedRole
from quadriga.data.errors import UserError
from quadriga.data.tokens import packing
from quadriga.data.tokens.tokenizer import load_tokenizer
from quadriga.launch.checks import model as model_checks
from quadriga.launch.checks.report import gpu_count
from quadriga.launch.config.load import is_placeholder, single_stages
from quadriga.launch.plan.model_shape import ModelShape, shape_of
from quadriga.orchestrator.settings import StageBase
from quadriga.orchestrator.stages.base import TokenizerSource
from quadriga.orchestrator.stages.registry import AnyStage, spec_of
from quadriga.orchestrator.stages.work import Elements, Work

Shapes = Mapping[str, ModelShape]  # stage of a pipeline -> the model that it makes


@dataclass(frozen=True)
class Member:
    """A model in hosts, or as `rollout` in vLLM engines. trained: it has an optimizer."""

    role: PlacedRole
    shape: ModelShape
    head: Head = "logprobs"
    trained: bool = False


@dataclass(frozen=True)
class PlannedStage:
    """A stage with its models in hosts and in vLLM engines (None: it has none); with both, the actor sends its weights
    to the engines. device: `cpu` or `cuda`. longest: tokens of the longest sequence. assumed: what had to be, in
    sentences."""

    name: str
    settings: StageBase
    cluster: ClusterSettings
    device: str
    hosted: list[Member]
    engine: Member | None
    longest: int
    assumed: list[str]

    @property
    def members(self) -> list[Member]:
        """Return all models, the engines' last."""
        return [*self.hosted, self.engine] if self.engine else self.hosted

    @property
    def width(self) -> int:
        """Return the bytes of a number in the models' computation type."""
        return 2 if self.cluster.on(self.device).dtype == "bfloat16" else 4

    def processes(self, role: PlacedRole) -> int:
        """Count a role's ranks or workers."""
        return self.cluster.rollout.workers if role == "rollout" else self.cluster.model_worker(role).ranks


def device_of(cluster: ClusterSettings) -> str:
    """Return `cpu` or `cuda`: `auto` is what this machine has, for a cluster to join is asked only by the run."""
    return cluster.device if cluster.device != "auto" else "cuda" if gpu_count() else "cpu"


def planned_stages(stage: AnyStage) -> list[PlannedStage]:
    """Look at a stage, or at those of a pipeline. Raises UserError where a model's shape cannot be known."""
    made, result = dict[str, ModelShape](), list[PlannedStage]()
    for name, single in single_stages(stage):
        result.append(_planned(name, single, made))
        made[name] = result[-1].members[0].shape  # an output is as large as the model that it is made from
    return result


def _planned(name: str, stage: StageBase, made: Shapes) -> PlannedStage:
    spec, members, assumed = spec_of(stage), dict[PlacedRole, Member](), dict[str, None]()
    for model in spec.models(stage):
        path, first = model.source.path, spec.models(stage)[0]
        if not members or path is None or is_placeholder(path) or (Path(path) / "config.json").is_file():
            shape = _shape(model.source, made, _vocabulary(spec.tokenizer(stage)) if path is None else None)
        else:
            shape = members[first.role].shape
            assumed[f"the {model.key} model is as large as the {first.key}, because {path} does not exist yet."] = None
        members[model.role] = Member(model.role, shape, model.head, model.trained)
    engine = members.pop("rollout", None)
    longest, _ = spec.longest(stage)
    cluster = stage.cluster
    return PlannedStage(
        name, stage, cluster, device_of(cluster), list(members.values()), engine, longest, list(assumed)
    )


def _vocabulary(tokenizer: TokenizerSource) -> int | None:
    """Return the number of tokens, which a model with fresh weights takes."""
    return len(load_tokenizer(tokenizer.folder)) if tokenizer.folder else tokenizer.vocab_size


def _shape(model: ModelSettings, made: Shapes, vocab: int | None = None) -> ModelShape:
    if model.path is not None and is_placeholder(model.path):
        names = [source.partition(".")[0] for source in model.path.strip("<>").split(" or ")]
        return next(made[name] for name in names if name in made)
    if model.path is not None:
        read_config(model.path)
    return shape_of(model_checks.model_config(model), vocab)


def work_of(stage: StageBase) -> Work:
    """Take the elements of a typical step evenly from the shortest to the longest of a sample of the stage's data."""
    spec = spec_of(stage)
    elements, assumed = _elements(stage)
    if (sampling := spec.sampling(stage)) is not None:
        assumed = [f"every answer has the maximum length, {sampling.max_tokens} tokens.", *assumed]
    return replace(spec.work(stage, elements), assumed=assumed)


def micro_batches(elements: Elements, ranks: int, budget: int) -> Elements:
    """Return the lengths of the sequences in each micro-batch of the first rank, as the trainer will cut them."""
    rank = packing.plan([sum(element) for element in elements], ranks, budget).ranks[0]
    return [[length for index in micro for length in elements[index]] or [2] for micro in rank]


def _elements(stage: StageBase) -> tuple[Elements, list[str]]:
    """Return the elements of a sample of the data, or one of the longest there may be; and what that assumes."""
    spec, why = spec_of(stage), "no data was read"
    data, folder = spec.datasets(stage)[0], spec.tokenizer(stage).folder
    if folder and (Path(folder) / "tokenizer_config.json").is_file() and not model_checks.made_later(data.source):
        try:
            few, tokenizer = model_checks.few_rows(data.source), load_tokenizer(folder)
            if found := spec.elements(stage, model_checks.load_rows(data, few, tokenizer, stage.seed).train):
                return found, []
        except UserError as error:
            why = f"the data cannot be read ({str(error).partition('. ')[0]})"
    longest, noun = spec.longest_element(stage)
    return [longest], [f"every {noun} has the maximum length, {max(longest)} tokens, because {why}."]
