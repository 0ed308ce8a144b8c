"""The tokens that one step of a stage moves through its models, from a sample of its data where that can be read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quadriga.data.errors import UserError
from quadriga.data.tokens.packing import plan
from quadriga.launch.checks import model as model_checks
from quadriga.launch.plan.stages import PlannedStage
from quadriga.orchestrator.settings import GeneratingStage, PretrainStage, RankStage, RewardStage, TrainStage
from quadriga.orchestrator.stages.rank.trainer import CHUNK_PROMPTS

Elements = list[list[int]]
"""The lengths of the sequences that stay together in a micro-batch, element by element."""


@dataclass(frozen=True)
class Work:
    """One step. Lengths are in tokens.

    updates: the elements of each optimizer step. sequences: what forward passes read. prompts: one entry a request.
    answer: tokens of each answer. assumed: what had to be taken for granted, in sentences.
    """

    updates: list[Elements]
    sequences: Elements
    prompts: list[int]
    answer: int
    assumed: list[str]


def work_of(stage: PlannedStage) -> Work:
    """A step of typical size: elements are taken evenly from the shortest to the longest of a sample."""
    settings, assumed = stage.settings, list[str]()
    if isinstance(settings, TrainStage):
        elements = evenly(_elements(settings, stage, assumed), settings.batch_size)
        return Work([elements], [], [], 0, assumed)
    assumed.append(f"every answer is as long as it may be, {settings.sampling.max_tokens} tokens.")
    lengths = _elements(settings, stage, assumed)
    if isinstance(settings, RankStage):
        each = sum(settings.answers_per_prompt) / 2
        prompts = [length for (length,) in evenly(lengths, round(CHUNK_PROMPTS * each))]
        return Work([], [], prompts, settings.sampling.max_tokens, assumed)
    prompts = [
        length for (length,) in evenly(lengths, settings.prompts_per_step) for _ in range(settings.samples_per_prompt)
    ]
    sequences = [[length + settings.sampling.max_tokens] for length in prompts]
    size, algorithm = settings.algorithm.minibatch_size, settings.algorithm
    minibatches = [sequences[start :: -(-len(sequences) // size)] for start in range(-(-len(sequences) // size))]
    return Work(minibatches * algorithm.epochs, sequences, prompts, settings.sampling.max_tokens, assumed)


def micro_batches(elements: Elements, ranks: int, budget: int) -> Elements:
    """Lengths of the sequences in each micro-batch of the first rank, as the trainer will cut them."""
    rank = plan([sum(element) for element in elements], ranks, budget).ranks[0]
    return [[length for index in micro for length in elements[index]] or [2] for micro in rank]


def evenly(elements: Sequence[list[int]], number: int) -> Elements:
    """So many elements, at equal distances in the order of their sizes."""
    ordered = sorted(elements, key=sum)
    return [ordered[int((index + 0.5) * len(ordered) / number)] for index in range(number)]


def _elements(settings: Any, stage: PlannedStage, assumed: list[str]) -> Elements:
    data = settings.data if isinstance(settings, TrainStage) else settings.prompts
    folder = settings.model.path if isinstance(settings, TrainStage) else settings.policy.path
    if isinstance(settings, PretrainStage) and (settings.tokenizer.path or settings.model.path):
        folder = settings.tokenizer.path or settings.model.path
    if folder and (Path(folder) / "tokenizer_config.json").is_file() and not model_checks.made_later(data):
        try:
            if found := _read(settings, folder):
                return found
        except UserError as error:
            assumed.append(f"the data cannot be read ({str(error).partition('. ')[0]}).")
    what = "rows" if isinstance(settings, PretrainStage) else "sequences"
    assumed.append(f"{what} are as long as they may be, {data.max_tokens} tokens, where no data says otherwise.")
    if isinstance(settings, RewardStage):
        return [[data.max_tokens] * 4]
    return [[data.max_tokens]]


def _read(settings: Any, folder: str) -> Elements:
    """Lengths of the first rows of every source."""
    from quadriga.data.loading import datasets
    from quadriga.data.tokens.tokenizer import load_tokenizer
    from quadriga.orchestrator.stages.pretrain.trainer import packed_rows

    tokenizer = load_tokenizer(folder)
    data = model_checks.few_rows(settings.data if isinstance(settings, TrainStage) else settings.prompts)
    if isinstance(settings, GeneratingStage):
        return [[len(prompt.token_ids)] for prompt in datasets.load_prompts(data, tokenizer, settings.seed).train]
    if isinstance(settings, PretrainStage):
        rows = datasets.load_documents(data, tokenizer, settings.seed).train
        return [[len(s) for s in row.sequences] for row in packed_rows(rows, data.max_tokens, settings.seed)]
    if isinstance(settings, RewardStage):
        rankings = datasets.load_rankings(data, tokenizer, settings.seed).train
        return [[len(sequence) for sequence in row.sequences] for row in rankings]
    return [[len(row.token_ids)] for row in datasets.load_demonstrations(data, tokenizer, settings.seed).train]
