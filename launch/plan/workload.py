"""Models that a stage keeps in processes, and the tokens that one step of it moves through them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quadriga.actors.model.folder import read_config
from quadriga.actors.model.heads import Head
from quadriga.actors.settings import ClusterSettings, ModelSettings, PlacedRole
from quadriga.data.errors import UserError
from quadriga.data.loading import datasets
from quadriga.data.settings import DataSettings
from quadriga.data.tokens import packing
from quadriga.data.tokens.tokenizer import load_tokenizer
from quadriga.launch.checks import model as model_checks
from quadriga.launch.config.load import build, is_placeholder, placeholders
from quadriga.launch.plan.model_shape import ModelShape, shape_of
from quadriga.orchestrator.pipeline_settings import PipelineStage
from quadriga.orchestrator.settings import TrainStage
from quadriga.orchestrator.stages.ppo.spec import PpoStage
from quadriga.orchestrator.stages.pretrain.spec import PretrainStage
from quadriga.orchestrator.stages.pretrain.trainer import packed_rows
from quadriga.orchestrator.stages.rank.spec import RankStage
from quadriga.orchestrator.stages.rank.trainer import CHUNK_PROMPTS
from quadriga.orchestrator.stages.reward_model.spec import RewardStage

Elements = list[list[int]]  # lengths in tokens of the sequences that stay together in a micro-batch
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
    to the engines. longest: tokens of the longest sequence. assumed: what had to be, in sentences."""

    name: str
    settings: Any
    cluster: ClusterSettings
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
        return 2 if self.cluster.dtype == "bfloat16" else 4

    def processes(self, role: PlacedRole) -> int:
        """Count a role's ranks or workers."""
        return self.cluster.rollout.workers if role == "rollout" else self.cluster.model_worker(role).ranks


@dataclass(frozen=True)
class Work:
    """The tokens of one step. updates: elements of each optimizer step. sequences: what forward passes read. prompts:
    lengths, one per request. assumed: what had to be, in sentences."""

    updates: list[Elements]
    sequences: Elements
    prompts: list[int]
    assumed: list[str]


def planned_stages(stage: Any) -> list[PlannedStage]:
    """Look at a stage, or at those of a pipeline. Raises UserError where a model's shape cannot be known."""
    if not isinstance(stage, PipelineStage):
        return [_planned(stage.name, stage, {})]
    made, result = dict[str, ModelShape](), list[PlannedStage]()
    for entry in [*stage.stages, *stage.repeat]:
        result.append(_planned(entry.name, build(entry.config, placeholders(entry)), made))
        made[entry.name] = result[-1].members[0].shape  # an output is as large as the model that it is made from
    return result


def _planned(name: str, stage: Any, made: Shapes) -> PlannedStage:
    if isinstance(stage, TrainStage):
        vocab = None
        if isinstance(stage, PretrainStage) and stage.model.path is None:
            folder = stage.tokenizer.path
            vocab = len(load_tokenizer(folder)) if folder else stage.tokenizer.vocab_size
        shape = _shape(stage.model, made, vocab)
        judges = isinstance(stage, RewardStage)
        member = Member("reward", shape, "scalar", True) if judges else Member("actor", shape, trained=True)
        return PlannedStage(name, stage, stage.cluster, [member], None, stage.data.max_tokens, [])
    if not isinstance(stage, PpoStage | RankStage):
        raise TypeError(f"stages of type {type(stage).__name__} cannot be planned")
    policy, assumed = _shape(stage.policy, made), list[str]()
    hosted = list(_ppo_models(stage, policy, made, assumed)) if isinstance(stage, PpoStage) else []
    longest = stage.prompts.max_tokens + stage.sampling.max_tokens
    return PlannedStage(name, stage, stage.cluster, hosted, Member("rollout", policy), longest, assumed)


def _ppo_models(stage: PpoStage, policy: ModelShape, made: Shapes, assumed: list[str]) -> Iterator[Member]:
    start, reward = policy, stage.reward_path
    if reward is not None and (is_placeholder(reward) or (Path(reward) / "config.json").is_file()):
        start = _shape(ModelSettings(path=reward), made)
    elif reward is not None:
        assumed.append(f"the reward model is as large as the policy, because {reward} does not exist yet.")
    yield Member("actor", policy, trained=True)
    if stage.algorithm.needs_critic:
        yield Member("critic", _shape(stage.critic, made) if stage.critic else start, "scalar", True)
    yield Member("reference", _shape(stage.reference, made) if stage.reference else policy)
    if reward is not None:
        yield Member("reward", start, "scalar")


def _shape(model: ModelSettings, made: Shapes, vocab: int | None = None) -> ModelShape:
    if model.path is not None and is_placeholder(model.path):
        names = [source.partition(".")[0] for source in model.path.strip("<>").split(" or ")]
        return next(made[name] for name in names if name in made)
    if model.path is not None:
        read_config(model.path)
    return shape_of(model_checks.model_config(model), vocab)


def work_of(settings: Any) -> Work:
    """Take the elements of a typical step evenly from the shortest to the longest of a sample of the stage's data."""
    elements, assumed = _elements(settings)
    if isinstance(settings, TrainStage):
        return Work([evenly(elements, settings.batch_size)], [], [], assumed)
    answer = settings.sampling.max_tokens
    assumed = [f"every answer has the maximum length, {answer} tokens.", *assumed]
    if isinstance(settings, RankStage):
        requests = round(CHUNK_PROMPTS * (sum(settings.answers_per_prompt) / 2))
        return Work([], [], [length for (length,) in evenly(elements, requests)], assumed)
    if not isinstance(settings, PpoStage):
        raise TypeError(f"the work of stages of type {type(settings).__name__} is not known")
    drawn = evenly(elements, settings.prompts_per_step)
    prompts = [length for (length,) in drawn for _ in range(settings.samples_per_prompt)]
    sequences = [[length + answer] for length in prompts]
    number = -(-len(sequences) // settings.algorithm.minibatch_size)
    minibatches = [sequences[start::number] for start in range(number)]
    return Work(minibatches * settings.algorithm.epochs, sequences, prompts, assumed)


def micro_batches(elements: Elements, ranks: int, budget: int) -> Elements:
    """Return the lengths of the sequences in each micro-batch of the first rank, as the trainer will cut them."""
    rank = packing.plan([sum(element) for element in elements], ranks, budget).ranks[0]
    return [[length for index in micro for length in elements[index]] or [2] for micro in rank]


def evenly(elements: Sequence[list[int]], number: int) -> Elements:
    """Return this number of elements, at equal distances in the order of their sizes."""
    ordered = sorted(elements, key=sum)
    return [ordered[int((index + 0.5) * len(ordered) / number)] for index in range(number)]


def _elements(settings: Any) -> tuple[Elements, list[str]]:
    """Return the elements of a sample of the data, or one of the longest there may be; and what that assumes."""
    trains, why = isinstance(settings, TrainStage), "no data was read"
    data, model = (settings.data, settings.model) if trains else (settings.prompts, settings.policy)
    folder = (isinstance(settings, PretrainStage) and settings.tokenizer.path) or model.path
    if folder and (Path(folder) / "tokenizer_config.json").is_file() and not model_checks.made_later(data):
        try:
            if found := _read(settings, model_checks.few_rows(data), folder):
                return found, []
        except UserError as error:
            why = f"the data cannot be read ({str(error).partition('. ')[0]})"
    what = "row" if isinstance(settings, PretrainStage) else "sequence"
    longest = [data.max_tokens] * (4 if isinstance(settings, RewardStage) else 1)
    return [longest], [f"every {what} has the maximum length, {data.max_tokens} tokens, because {why}."]


def _read(settings: Any, data: DataSettings, folder: str) -> Elements:
    tokenizer, seed = load_tokenizer(folder), settings.seed
    if isinstance(settings, PretrainStage):
        rows = packed_rows(datasets.load_documents(data, tokenizer, seed).train, data.max_tokens, seed)
        return [[len(sequence) for sequence in row.sequences] for row in rows]
    if isinstance(settings, RewardStage):
        rankings = datasets.load_rankings(data, tokenizer, seed).train
        return [[len(sequence) for sequence in ranking.sequences] for ranking in rankings]
    load = datasets.load_demonstrations if isinstance(settings, TrainStage) else datasets.load_prompts
    return [[len(row.token_ids)] for row in load(data, tokenizer, seed).train]
