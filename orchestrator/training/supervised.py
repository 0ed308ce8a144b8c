"""Pre-training, fine-tuning and reward modelling: one loop over batches of elements, one loss each."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from quadriga.actors.model.group import ActorGroup, Element
from quadriga.actors.model.heads import ModelSpec
from quadriga.data.loading.batch_order import batch_indices
from quadriga.data.records import RankedTokens, Tokens
from quadriga.kernels.losses import LOSSES
from quadriga.orchestrator.cluster.processes import Hosting
from quadriga.orchestrator.evaluation.statistics import pair_accuracy, wilson_interval
from quadriga.orchestrator.settings import PretrainStage, RewardStage, SftStage, TrainStage
from quadriga.orchestrator.training import invariants
from quadriga.orchestrator.training import lr_schedule as schedule
from quadriga.orchestrator.training.checkpoint import Export
from quadriga.orchestrator.training.trainer import TrainingStage, check_context, model_path, scalar_spec


class SupervisedStage(TrainingStage):
    """Steps over `self.elements`; measures `self.heldout`. Subclasses load the data and read the measurement."""

    trained = ("actor",)
    loss_name = "nll"
    settings: TrainStage
    elements: list[Element]
    heldout: list[Element]

    def begin(self) -> None:
        """Choose the loss."""
        self.loss = LOSSES[self.loss_name]()

    def units(self, elements: Sequence[Element]) -> float:
        """What a loss sum over these elements is divided by: tokens in the loss mask."""
        return float(sum(np.sum(mask) for element in elements for mask in element.tokens["mask"]))

    def step(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """One optimizer step, and a measurement when due."""
        settings, number = self.settings, self.state.step
        batch = [
            self.elements[i] for i in batch_indices(number, settings.batch_size, len(self.elements), settings.seed)
        ]
        rate = schedule.lr(number, settings.total_steps, settings.optimizer)
        units, tokens = self.units(batch), sum(element.length for element in batch)
        with self.timed("update"):
            update = self.group(self.trained[0]).update(batch, self.loss, units, rate).result()
        self.state.tokens += tokens
        self.state.samples += len(batch)
        metrics = {f"train/{key}": _mean(key, value, units) for key, value in update.stats.items()}
        metrics |= {"train/lr": rate, "train/grad_norm": update.grad_norm}
        metrics |= {"train/epoch": self.state.samples / len(self.elements)}
        metrics |= {"perf/tokens_per_second": tokens / self.timings["update"]}
        every = settings.heldout_every
        last = number + 1 == settings.total_steps
        if self.heldout and (last or (every is not None and (number + 1) % every == 0)):
            with self.timed("heldout"):
                metrics |= self.measure()
            self.state.measured.append((number + 1, metrics["eval/loss"]))
        return metrics, []

    def measure(self) -> dict[str, float]:
        """Held-out loss in nats a token."""
        total, count = _token_losses(self.group("actor"), self.heldout)
        return {"eval/loss": total / count}


class Pretrain(SupervisedStage):
    """Next-token prediction on documents packed into rows of about `data.max_tokens` tokens."""

    stage = "pretrain"
    settings: PretrainStage

    def prepare(self) -> None:
        """Tokenizer (trained on the documents unless given), fresh weights unless given, packed rows."""
        from quadriga.actors.model.export import save_fresh_model
        from quadriga.data.loading.datasets import document_texts, load_documents
        from quadriga.data.tokens.tokenizer import load_tokenizer, train_tokenizer

        settings, model = self.settings, self.settings.model
        start = self.run.path / "start"
        if model.path is not None:
            self.path = model_path(model, "model")
            self.tokenizer = load_tokenizer(settings.tokenizer.path or self.path)
        elif (start / "config.json").is_file():
            self.path, self.tokenizer = str(start), load_tokenizer(start)
        else:
            source = settings.tokenizer
            if source.path is not None:
                self.tokenizer = load_tokenizer(source.path)
            else:
                self.tokenizer = train_tokenizer(document_texts(settings.data, settings.seed), source.vocab_size)
            assert model.shape is not None
            save_fresh_model(model.shape, self.tokenizer, settings.seed, start)
            self.path = str(start)
        check_context(self.path, settings.data.max_tokens, "data.max_tokens")
        split = load_documents(settings.data, self.tokenizer, settings.seed)
        self.skipped = split.skipped
        self.elements = packed_rows(split.train, settings.data.max_tokens, settings.seed)
        self.heldout = packed_rows(split.heldout, settings.data.max_tokens, settings.seed)

    def hostings(self) -> list[Hosting]:
        """The one model."""
        return [Hosting("actor", ModelSpec(self.path, "logprobs"), self.settings.optimizer)]

    def exports(self) -> dict[str, Export]:
        """The policy."""
        return {"policy": Export(self.group("actor"), "policy", {})}


class Sft(SupervisedStage):
    """Fine-tuning on demonstrations."""

    stage = "sft"
    settings: SftStage

    def prepare(self) -> None:
        """Tokenizer of the model, demonstrations with their loss masks."""
        from quadriga.data.loading.datasets import load_demonstrations
        from quadriga.data.tokens.tokenizer import load_tokenizer

        settings = self.settings
        self.path = model_path(settings.model, "model")
        self.tokenizer = load_tokenizer(self.path)
        check_context(self.path, settings.data.max_tokens, "data.max_tokens")
        split = load_demonstrations(settings.data, self.tokenizer, settings.seed)
        self.skipped = split.skipped
        invariants.eos_is_learned(split.train, [self.tokenizer.eos_token_id])
        self.elements = [_element([row]) for row in split.train]
        self.heldout = [_element([row]) for row in split.heldout]

    def hostings(self) -> list[Hosting]:
        """The one model."""
        return [Hosting("actor", ModelSpec(self.path, "logprobs"), self.settings.optimizer)]

    def exports(self) -> dict[str, Export]:
        """The policy."""
        return {"policy": Export(self.group("actor"), "policy", {})}

    def finished(self) -> bool:
        """At the last step, or earlier when asked to stop as held-out loss has not improved for two measurements."""
        losses = [loss for _, loss in self.state.measured]
        rises = len(losses) > 2 and min(losses[-2:]) >= min(losses[:-2])
        return super().finished() or (self.settings.stop_when_heldout_rises and rises)


class Reward(SupervisedStage):
    """A reward model from rankings: all answers to a prompt in one element, all pairs in the loss."""

    stage = "reward"
    trained = ("reward",)
    loss_name = "ranking"
    settings: RewardStage

    def prepare(self) -> None:
        """Rankings split by prompt, and the demonstrations that shall score 0."""
        from quadriga.data.loading.datasets import load_demonstrations, load_rankings
        from quadriga.data.tokens.tokenizer import load_tokenizer

        settings = self.settings
        self.path = model_path(settings.model, "model")
        self.tokenizer = load_tokenizer(self.path)
        check_context(self.path, settings.data.max_tokens, "data.max_tokens")
        split = load_rankings(settings.data, self.tokenizer, settings.seed)
        self.skipped = split.skipped
        self.elements = [_ranking_element(row) for row in split.train]
        self.heldout = [_ranking_element(row) for row in split.heldout]
        if settings.demonstrations is not None:
            rows = load_demonstrations(settings.demonstrations, self.tokenizer, settings.seed).train
            self.zero = [row.token_ids for row in rows if not all(row.loss_mask[1:])][:ZERO_ROWS]
        else:
            self.zero = [sequence for element in self.elements for sequence in element.sequences][:ZERO_ROWS]

    def hostings(self) -> list[Hosting]:
        """The one model; its head has no bias of its own, since a difference of scores cannot teach one."""
        spec = scalar_spec(self.path, self.settings.seed, None, self.settings.head_std)
        return [Hosting("reward", spec, self.settings.optimizer)]

    def units(self, elements: Sequence[Element]) -> float:
        """Prompts: every one weighs the same, however many answers it has."""
        return float(len(elements))

    def exports(self) -> dict[str, Export]:
        """The reward model, shifted such that demonstrations score 0 on average."""
        shift = float(np.mean(self.group("reward").forward_scores(self.zero, "reward_shift").result()))
        extra = {"reward_shift": shift, "pad_token_id": self.tokenizer.pad_token_id}
        return {"reward": Export(self.group("reward"), "reward", extra)}

    def measure(self) -> dict[str, float]:
        """Held-out loss, pair accuracy (a prompt's mean first) with its interval, calibration over pairs."""
        sequences = [sequence for element in self.heldout for sequence in element.sequences]
        scores = iter(self.group("reward").forward_scores(sequences, "heldout").result())
        margins = [_margins([next(scores) for _ in e.sequences], e.per_sequence["rank"]) for e in self.heldout]
        flat = np.concatenate(margins)
        accuracy = wilson_interval(float(sum(np.heaviside(m, 0.5).mean() for m in margins)), len(margins))
        return {
            "eval/loss": float(np.mean([np.logaddexp(0, -m).mean() for m in margins])),
            "eval/accuracy": accuracy.mean,
            "eval/accuracy_low": accuracy.low,
            "eval/accuracy_high": accuracy.high,
            "eval/margin": float(flat.mean()),
            "eval/calibration_error": pair_accuracy(flat).calibration_error,
            "eval/pairs": float(len(flat)),
        }


ZERO_ROWS = 1024
"""Demonstrations (or answers) whose mean score fixes the zero of a reward model."""


def packed_rows(rows: list[Tokens], max_tokens: int, seed: int) -> list[Element]:
    """Documents in a shuffled order, filled into rows of at most `max_tokens` tokens; attention stays inside each."""
    result: list[list[Tokens]] = []
    room = 0
    for index in batch_indices(0, len(rows), len(rows), seed) if rows else []:
        row = rows[index]
        if len(row.token_ids) > room:
            result.append([])
            room = max_tokens
        result[-1].append(row)
        room -= len(row.token_ids)
    return [_element(row) for row in result]


def _element(rows: list[Tokens]) -> Element:
    return Element(
        [row.token_ids for row in rows], tokens={"mask": [np.asarray(row.loss_mask, np.float32) for row in rows]}
    )


def _ranking_element(row: RankedTokens) -> Element:
    return Element(row.sequences, per_sequence={"rank": list(row.ranks)})


def _margins(scores: list[float], ranks: list[int]) -> Any:
    pairs = [(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b]
    return np.asarray([scores[i] - scores[j] for i, j in pairs], np.float64)


def _mean(key: str, value: float, units: float) -> float:
    return value if key.endswith(("_max", "_min")) else value / units


def _token_losses(group: ActorGroup, elements: list[Element]) -> tuple[float, float]:
    """(sum of -log p, tokens) over the masks of elements."""
    sequences = [sequence for element in elements for sequence in element.sequences]
    masks = [mask for element in elements for mask in element.tokens["mask"]]
    results = group.forward_logprobs(sequences, 1.0, "heldout").result()
    total = sum(
        float(-(logprobs.astype(np.float64) * mask).sum()) for (logprobs, _), mask in zip(results, masks, strict=True)
    )
    return total, float(sum(mask.sum() for mask in masks))
