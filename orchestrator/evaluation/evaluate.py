"""Evaluation of models in one rollout engine whose weights are swapped, on the same prompts for all of them."""

import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quadriga.actors.model.folder import check_context, check_reward_head, check_same_tokenizer, read_config
from quadriga.actors.model.heads import ModelSpec, scalar_spec
from quadriga.actors.runtime.remote_calls import gather
from quadriga.actors.settings import ClusterSettings, DeadlineSettings, SamplingSettings
from quadriga.data.errors import Lost, UserError
from quadriga.data.records import Prompt, Sample
from quadriga.orchestrator.cluster.processes import ModelUse, Processes, RolloutPlan, connected, processes
from quadriga.orchestrator.evaluation.metrics import Answer, Evaluation, Measures, best_of, mean_kl, measure
from quadriga.orchestrator.evaluation.settings import EvaluationSettings
from quadriga.orchestrator.faults.recovery import Recovery
from quadriga.orchestrator.model_folders import ResolvedModel
from quadriga.orchestrator.rewards.base import Reward, RewardContext
from quadriga.orchestrator.rewards.model import ModelReward
from quadriga.orchestrator.rollout.answer_text import answer_text
from quadriga.orchestrator.rollout.pool import RolloutPool
from quadriga.orchestrator.tracking.console import StageProgress
from quadriga.orchestrator.training import invariants

if TYPE_CHECKING:
    from quadriga.data.loading.datasets import Split

NOT_SHAPE = {
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "pad_token_id",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
"""Fields of config.json that do not change the engine's computation with a folder's weights."""


def evaluate_models(
    models: Mapping[str, str],
    settings: EvaluationSettings,
    cluster: ClusterSettings,
    logs: str | Path,
    *,
    reward: str | None = None,
    reference: str | None = None,
    seed: int = 0,
    samples_per_prompt: int = 1,
    progress: StageProgress | None = None,
) -> dict[str, Evaluation]:
    """Sample every model on the same prompts and seeds, and score the answers; return model name -> its evaluation.

    models: name -> folder; all have one architecture and tokenizer, because one engine serves them in turn. reward:
    folder of the reward model that scores too, None for the gold reward only. reference: folder of the model from which
    KL is measured. logs: folder for the processes' logs. samples_per_prompt: above 1, with a reward model, adds `best`.
    progress: entered here.

    Raises UserError for models that cannot be compared, and Fault for a failure.
    """
    from quadriga.data.tokens.chat import end_tokens

    progress = progress or StageProgress("evaluation", "evaluation")
    tokenizer, split, longest = _prepared(models, settings, reward, reference, seed)
    prompts = split.train[: settings.rows]
    uses = []
    if reward is not None:
        uses.append(ModelUse("reward", scalar_spec(reward, seed, None)))
    if reference is not None and settings.sampling.temperature > 0:
        uses.append(ModelUse("reference", ModelSpec(reference, "logprobs")))
    first = next(iter(models.values()))
    Path(logs).mkdir(parents=True, exist_ok=True)
    results: dict[str, Evaluation] = {}
    recovery = Recovery(cluster.recovery)
    with (
        progress,
        connected(cluster) as dashboard,
        progress.waiting("starting processes"),
        processes(cluster, uses, RolloutPlan(first, longest, load=True), str(logs), on_loss=recovery.note) as running,
        closing(settings.gold_reward.start(RewardContext("gold", Path(logs) / "gold.log"))) as gold,
    ):
        progress.started(0, len(models), dashboard, None, running.logs)
        if split.skipped:
            progress.note(f"  {len(split.skipped)} prompts were left out, the first for: {split.skipped[0]}")
        stops = end_tokens(tokenizer)
        pool = RolloutPool(running.fleet, stops, partial(answer_text, tokenizer, stops))
        scorer = ModelReward(running.groups, reward) if reward is not None else None
        evaluator = _Evaluator(
            running, pool, gold, scorer, prompts, settings.sampling, seed, samples_per_prompt, progress
        )
        for version, (name, folder) in enumerate(models.items()):
            if version > 0:
                pool.weights = FolderWeights(folder, cluster.deadlines)
                pool.sync(version)
            results[name] = evaluator.evaluate(name)
            progress.step(version + 1, {})
    return results


def logs_folder(target: ResolvedModel) -> Path:
    """Return a folder for logs: the run's own, or a temporary one where there is no run or it is read-only."""
    if target.run is not None and os.access(target.run.path, os.W_OK):
        return target.run.logs_dir / "evaluation"
    return Path(tempfile.mkdtemp(prefix="quadriga-eval-"))


@dataclass(frozen=True)
class _Evaluator:
    """Processes, prompts and sampling that are the same for every model."""

    running: Processes
    pool: RolloutPool
    gold: Reward
    reward: Reward | None
    prompts: list[Prompt]
    sampling: SamplingSettings
    seed: int
    samples: int
    progress: StageProgress

    def evaluate(self, name: str) -> Evaluation:
        """Measure the model whose weights the engine holds now."""
        began = time.monotonic()
        sampled, samples = self._measure(self.sampling, self.samples, f"{name}: answers")
        result = Evaluation(**{field.name: getattr(sampled, field.name) for field in fields(Measures)})
        if self.sampling.temperature > 0:
            greedy = self.sampling.model_copy(update={"temperature": 0.0})
            result = replace(result, greedy=self._measure(greedy, 1, f"{name}: greedy answers")[0])
            if "reference" in self.running.groups:
                group = self.running.groups["reference"]
                passes = group.forward_logprobs(
                    [s.token_ids for s in samples], self.sampling.temperature, "reference"
                ).result()
                result = replace(result, kl=mean_kl(samples, [logprobs for logprobs, _ in passes]))
        if self.reward is not None and self.samples > 1:
            result = replace(result, best=measure(best_of(sampled.answers)))
        return replace(result, seconds=time.monotonic() - began)

    def _measure(self, sampling: SamplingSettings, each: int, title: str) -> tuple[Measures, list[Sample]]:
        """Draw answers, check them, and score them with the reward model and the gold reward.

        each: samples per prompt. Every model gets the same seeds, so that equal models give equal answers.
        """
        report = self.progress.part(title)
        samples = self.pool.generate(self.prompts, each, sampling, self.seed, 0, report)
        invariants.served_by(samples, self.pool.version)
        scoring = self.reward.start(samples) if self.reward else None
        gold = self.gold.start(samples).result()
        rewards = scoring.result().values if scoring else [None] * len(samples)
        answers = []
        for sample, score, parts, reward in zip(samples, gold.values, gold.parts, rewards, strict=True):
            kind = sample.prompt.meta.get("kind")
            answers.append(
                Answer(
                    prompt=sample.prompt.id,
                    index=sample.index,
                    kind=None if kind is None else str(kind),
                    question=sample.prompt.messages[-1]["content"],
                    text=sample.text,
                    ended=sample.ended,
                    gold=None if score is None else {**parts, "score": score},
                    reward=reward,
                    turn=sum(message["role"] == "user" for message in sample.prompt.messages),
                )
            )
        return measure(answers), samples


def _prepared(
    models: Mapping[str, str], settings: EvaluationSettings, reward: str | None, reference: str | None, seed: int
) -> tuple[Any, "Split[Prompt]", int]:
    """Return the tokenizer, the prompts and the longest sequence in tokens.

    Raises UserError for bad input, before a process is started.
    """
    from quadriga.data.loading.datasets import load_prompts
    from quadriga.data.tokens.tokenizer import load_tokenizer

    if not models:
        raise UserError("There is no model to evaluate.")
    first, *others = models.values()
    for other in others:
        check_same_shape(first, other)
    for scorer in (reward, reference):
        if scorer is not None:
            read_config(scorer)
            check_same_tokens(first, scorer)
    if reward is not None:
        check_reward_head(reward)
        check_same_tokenizer(first, reward, settings.prompts.chat_template)
    longest = settings.prompts.max_tokens + settings.sampling.max_tokens
    check_context(first, longest, "prompts.max_tokens + sampling.max_tokens")
    tokenizer = load_tokenizer(first)
    return tokenizer, load_prompts(settings.prompts.data, tokenizer, seed), longest


def check_same_shape(one: str, other: str) -> None:
    """Raise UserError unless an engine started with one folder can take the weights and prompts of the other."""
    a, b = read_config(one), read_config(other)
    differing = sorted(key for key in (a.keys() | b.keys()) - NOT_SHAPE if a.get(key) != b.get(key))
    if differing:
        listed = ", ".join(f"{key} is {a.get(key)} and {b.get(key)}" for key in differing[:3])
        raise UserError(
            f"{one} and {other} are models of different shapes ({listed}), but one engine serves both. Evaluate "
            "each separately."
        )
    check_same_tokens(one, other)


def check_same_tokens(one: str, other: str) -> None:
    """Raise UserError unless both folders have the same vocabulary: answers are passed on as token ids."""
    from quadriga.data.tokens.comparison import same_vocabulary
    from quadriga.data.tokens.tokenizer import load_tokenizer

    if not same_vocabulary(load_tokenizer(one), load_tokenizer(other)):
        raise UserError(
            f"{one} and {other} have different tokenizers, so neither can score the other. Evaluate each "
            "separately, with a reward model of the same family."
        )


@dataclass
class FolderWeights:
    """The weights of a model folder that the workers' hosts can read."""

    folder: str
    deadlines: DeadlineSettings

    def send(self, version: int, workers: dict[str, Any]) -> dict[str, Lost]:
        """Have every worker load the folder, as this version; return losses by name."""
        refs = {name: worker.load_folder.remote(self.folder, version) for name, worker in workers.items()}
        return gather(refs, "sync", self.deadlines.call, workers, self.deadlines.heartbeat)[1]
