"""PPO: one step from prompts to new weights in the rollout engine, top to bottom."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quadriga.actors.model.batch import Element, LossPart
from quadriga.actors.model.folder import (
    check_context,
    check_reward_head,
    check_same_tokenizer,
    end_tokens,
    model_path,
    reward_shift,
)
from quadriga.actors.model.group import Update
from quadriga.actors.model.heads import ModelSpec, scalar_spec
from quadriga.actors.settings import ModelSettings
from quadriga.data.errors import Lost, UserError
from quadriga.data.loading.batch_order import batch_indices, hash_seed
from quadriga.data.records import Prompt, Sample
from quadriga.kernels.losses.base import Loss
from quadriga.kernels.losses.policy import PolicyClip
from quadriga.kernels.losses.value import ValueClip
from quadriga.kernels.statistics import mean_statistics, reduce_statistics
from quadriga.orchestrator.algorithms import advantages
from quadriga.orchestrator.algorithms.advantages import Advantages, Experience
from quadriga.orchestrator.algorithms.kl import KLController
from quadriga.orchestrator.cluster.health import State
from quadriga.orchestrator.cluster.processes import ModelUse, RolloutPlan
from quadriga.orchestrator.rewards.base import Reward, Scores
from quadriga.orchestrator.rewards.function import FunctionReward, score_samples
from quadriga.orchestrator.rewards.function_pool import RewardFunctionPool
from quadriga.orchestrator.rewards.model import ModelReward
from quadriga.orchestrator.rollout.pool import RolloutPool
from quadriga.orchestrator.stages.ppo.spec import PpoStage
from quadriga.orchestrator.training import invariants
from quadriga.orchestrator.training import lr_schedule as schedule
from quadriga.orchestrator.training.checkpoint import Export
from quadriga.orchestrator.training.trainer import TrainingStage


class Ppo(TrainingStage):
    """PPO: drives actor, critic, reference, reward model and the vLLM workers that answer."""

    stage = "ppo"
    trained = ("actor", "critic")
    settings: PpoStage

    # Set by `load_inputs`.
    prompts: list[Prompt]
    has_critic: bool
    policy_path: str
    reference_path: str
    reward_path: str | None
    """Folder of the reward model; None when the reward is a function."""
    starts_as_reference: bool
    """Whether policy and reference are the same weights before the first step."""
    max_tokens: int
    """Longest sequence: prompt and answer."""

    # Set by `setup_workers`.
    dtype: str
    policy_loss: Loss
    value_loss: Loss
    gold: RewardFunctionPool | None
    reward_functions: RewardFunctionPool | None
    pool: RolloutPool

    # Set by `sync_after_restore`.
    kl: KLController
    reward: Reward
    sync_bytes: int
    """Bytes that the last sync sent to each rollout worker."""

    def load_inputs(self) -> None:
        """Load tokenizer and prompts, and resolve what each role starts from."""
        from quadriga.data.loading.datasets import load_prompts
        from quadriga.data.tokens.tokenizer import load_tokenizer

        settings = self.settings
        self.has_critic = advantages.needs_critic(settings.algorithm)
        self.policy_path = model_path(settings.policy, "policy")
        self.tokenizer = load_tokenizer(self.policy_path)
        self.max_tokens = settings.prompts.max_tokens + settings.sampling.max_tokens
        check_context(self.policy_path, self.max_tokens, "prompts.max_tokens + sampling.max_tokens")
        split = load_prompts(settings.prompts, self.tokenizer, settings.seed)
        self.prompts = split.train
        self.skipped = split.skipped
        invariants.one_bos([prompt.token_ids for prompt in self.prompts], self.tokenizer.bos_token_id)
        self.reference_path = model_path(settings.reference, "reference") if settings.reference else self.policy_path
        self.starts_as_reference = Path(self.reference_path).resolve() == Path(self.policy_path).resolve()
        self.reward_path = None
        if settings.reward_path is not None:
            self.reward_path = model_path(ModelSettings(path=settings.reward_path), "reward")
            check_reward_head(self.reward_path)
            check_same_tokenizer(self.policy_path, self.reward_path)
        if self.has_critic and settings.critic is None and settings.reward_path is None:
            raise UserError(
                "The critic has nothing to start from: a reward function has no weights. Give `critic.path` (the "
                "policy's folder will do: its trunk is used and the value head starts fresh)."
            )

    def models(self) -> list[ModelUse]:
        """Return actor, critic, reference, and the reward model if there is one."""
        settings = self.settings
        uses = [
            ModelUse("actor", ModelSpec(self.policy_path, "logprobs"), settings.optimizer),
            ModelUse("reference", ModelSpec(self.reference_path, "logprobs")),
        ]
        if self.reward_path is not None:
            uses.append(ModelUse("reward", scalar_spec(self.reward_path, settings.seed, None)))
        if self.has_critic:
            start = model_path(settings.critic, "critic") if settings.critic else self.reward_path
            assert start is not None
            critic = scalar_spec(start, settings.seed, -reward_shift(start))
            uses.append(ModelUse("critic", critic, settings.critic_optimizer))
        return uses

    def engine(self) -> RolloutPlan:
        """Return engines that wait for their first sync."""
        return RolloutPlan(self.policy_path, self.max_tokens, load=False)

    def setup_workers(self) -> None:
        """Create the losses, the processes of reward functions, and the rollout pool."""
        settings = self.settings
        self.dtype = settings.cluster.dtype
        self.policy_loss = PolicyClip(settings.algorithm.clip)
        self.value_loss = ValueClip(settings.algorithm.value_clip)
        logs = self.run.logs_dir
        self.gold = RewardFunctionPool(settings.gold_reward, logs / "gold.log") if settings.gold_reward else None
        function = settings.reward_function
        self.reward_functions = RewardFunctionPool(function, logs / "reward.log") if function else None
        stops = end_tokens(self.policy_path, self.tokenizer)
        decode = lambda ids: self.tokenizer.decode(ids, skip_special_tokens=True).strip()  # noqa: E731
        self.pool = RolloutPool(self.running.fleet, stops, decode)

    def sync_after_restore(self) -> None:
        """Initialise KL controller and reward, and push the current weights to the engines, which start without any."""
        self.kl = KLController(self.settings.algorithm.kl)
        if self.state.kl:
            self.kl.load_state_dict(self.state.kl)
        self.reward = self._reward()
        self.sync(self.state.step)

    def step(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Run the parts of one step in order; the caller commits it."""
        with self.timed("generate"):
            samples = self.generate()
        # These passes, and a reward model's, depend on the answers only: they run side by side, collected in order.
        sequences, temperature = [s.token_ids for s in samples], self.settings.sampling.temperature
        reference_pass = self.group("reference").forward_logprobs(sequences, temperature, "reference")
        actor_pass = self.group("actor").forward_logprobs(sequences, temperature, "old_logprobs")
        critic_pass = self.group("critic").forward_values(sequences, "values") if self.has_critic else None
        with self.timed("score"):
            scores = self.reward.start(samples).result()
        with self.timed("reference"):
            ref_logprobs = [
                _response(s, logprobs) for s, (logprobs, _) in zip(samples, reference_pass.result(), strict=True)
            ]
        with self.timed("old_logprobs"):
            passes = actor_pass.result()
            old_logprobs = [_response(s, logprobs) for s, (logprobs, _) in zip(samples, passes, strict=True)]
            agreement = invariants.engine_agrees([s.rollout_logprobs for s in samples], old_logprobs, self.dtype)
        with self.timed("values"):
            values = (
                [_response(s, v) for s, v in zip(samples, critic_pass.result(), strict=True)] if critic_pass else None
            )
        with self.timed("advantages"):
            keep = [i for i, value in enumerate(scores.values) if value is not None]
            experience = _experience(samples, scores, old_logprobs, ref_logprobs, values, keep)
            result = advantages.compute(experience, self.settings.algorithm, self.kl.coefficient)
            if self.state.step == 0 and self.starts_as_reference:
                invariants.start_kl_is_zero(result.stats["kl"], self.dtype)
        with self.timed("update"):
            kept = [samples[i] for i in keep]
            trained = self.update(kept, experience, result)
        with self.timed("sync"):
            self.sync(self.state.step + 1)
        entropy = _masked_mean(samples, [_response(s, e) for s, (_, e) in zip(samples, passes, strict=True)])
        metrics = agreement | trained | {"actor/entropy": entropy}
        metrics |= self.metrics(samples, scores, result)
        gold = self.score_by_gold(samples)
        metrics |= gold_metrics(gold)
        rows = self.sample_rows(kept, experience, scores, gold, keep)
        self.kl.update(result.stats["kl_per_sample"], len(kept))
        self.state.kl = self.kl.state_dict()
        return metrics, rows

    def abort_step(self) -> None:
        """Discard the answers in flight."""
        self.pool.abort()

    def teardown(self) -> None:
        """End the processes of reward functions."""
        for functions in (self.gold, self.reward_functions):
            if functions is not None:
                functions.close()

    def exports(self) -> dict[str, Export]:
        """Return policy and critic."""
        exports = {"policy": Export(self.group("actor"), "policy", {})}
        if self.has_critic:
            exports["critic"] = Export(self.group("critic"), "critic", {"classifier_dropout": 0.0})
        return exports

    def generate(self) -> list[Sample]:
        """Sample this step's answers with the current weights."""
        settings, step = self.settings, self.state.step
        indices = batch_indices(step, settings.prompts_per_step, len(self.prompts), settings.seed)
        prompts = _distinct([self.prompts[i] for i in indices])
        samples = self.pool.generate(
            prompts,
            settings.samples_per_prompt,
            settings.sampling,
            settings.seed,
            step,
            self.progress.part("generate"),
        )
        invariants.served_by(samples, step)
        self.state.samples += len(samples)
        self.state.tokens += sum(len(s.token_ids) for s in samples)
        return samples

    def update(self, samples: list[Sample], experience: Experience, result: Advantages) -> dict[str, float]:
        """Run the epochs of minibatches; actor and critic train at the same time."""
        settings, algorithm, step = self.settings, self.settings.algorithm, self.state.step
        rates = {
            "actor": schedule.lr(step, settings.total_steps, settings.optimizer),
            "critic": schedule.lr(step, settings.total_steps, settings.critic_optimizer),
        }
        totals: dict[str, list[tuple[Update, float]]] = {"actor": [], "critic": []}
        for epoch in range(algorithm.epochs):
            order = batch_indices(0, len(samples), len(samples), hash_seed(settings.seed, step, epoch))
            for start in range(0, len(order), algorithm.minibatch_size):
                minibatch = sorted(order[start : start + algorithm.minibatch_size])
                tokens = float(sum(sum(samples[i].action_mask) for i in minibatch))
                calls = {"actor": (self.actor_elements(samples, experience, result, minibatch), self.policy_loss)}
                if self.has_critic:
                    calls["critic"] = (self.critic_elements(samples, experience, result, minibatch), self.value_loss)
                pending = {
                    role: self.group(role).update(
                        [LossPart(loss, elements, tokens)], rates[role], settings.sampling.temperature
                    )
                    for role, (elements, loss) in calls.items()
                }
                for role, call in pending.items():
                    totals[role].append((call.result(), tokens))
                if epoch == 0 and start == 0:
                    invariants.first_ratio_is_one(totals["actor"][0][0].stats["log_ratio_max"], self.dtype)
        metrics = {f"{role}/lr": rates[role] for role, updates in totals.items() if updates}
        for role, updates in totals.items():
            metrics |= {f"{role}/{key}": value for key, value in _merged(updates).items()}
        return metrics

    def sync(self, version: int) -> None:
        """Send the actor's weights to every rollout worker, and later to replacements of lost ones."""

        def send(workers: dict[str, Any]) -> dict[str, Lost]:
            self.sync_bytes, lost = self.group("actor").send_weights(version, workers).result()
            return lost

        self.pool.sync(version, send)

    def _reward(self) -> Reward:
        if self.reward_functions is not None:
            return FunctionReward(self.reward_functions)
        assert self.reward_path is not None
        return ModelReward(self.group("reward"), reward_shift(self.reward_path), self.reward_path)

    def actor_elements(
        self, samples: list[Sample], experience: Experience, result: Advantages, indices: list[int]
    ) -> list[Element]:
        """Return sequences with the columns of the policy loss, aligned with their tokens."""
        columns = {"old_logprobs": experience.logprobs, "advantages": result.advantages}
        return [_element(samples[i], {name: column[i] for name, column in columns.items()}) for i in indices]

    def critic_elements(
        self, samples: list[Sample], experience: Experience, result: Advantages, indices: list[int]
    ) -> list[Element]:
        """Return sequences with the columns of the value loss, aligned with their tokens."""
        assert experience.values is not None and result.returns is not None
        columns = {"old_values": experience.values, "returns": result.returns}
        return [_element(samples[i], {name: column[i] for name, column in columns.items()}) for i in indices]

    def score_by_gold(self, samples: list[Sample]) -> Scores | None:
        """Score the answers by the gold reward, which training never sees; None without one."""
        if self.gold is None:
            return None
        with self.timed("gold"):
            return score_samples(self.gold, samples, "gold")

    def metrics(self, samples: list[Sample], scores: Scores, result: Advantages) -> dict[str, float]:
        """Return the metrics of a step besides its losses: reward, KL, lengths, speed."""
        stats = result.stats
        lengths = [len(s.response_ids) for s in samples]
        metrics = {f"reward/{key}": stats[key] for key in ("score", "score_std", "score_min", "score_max")}
        metrics |= {
            "reward/total": stats["reward"],
            "reward/errors": float(scores.errors),
            "reward/dropped": float(sum(value is None for value in scores.values)),
            "actor/kl": stats["kl"],
            "actor/kl_per_sample": stats["kl_per_sample"],
            "actor/kl_coefficient": self.kl.coefficient,
            "actor/advantage_std": stats["advantage_std"],
            "rollout/eos_rate": stats["ended"],
            "rollout/response_length": float(np.mean(lengths)),
            "rollout/response_length_max": float(max(lengths)),
            "rollout/distinct_answers": len({s.text for s in samples}) / len(samples),
            "rollout/policy_version": float(self.state.step),
            "system/rollout_workers": float(len(self.running.fleet.in_state(State.HEALTHY, State.SUSPECT))),
            "system/requests_reissued": float(self.pool.request_tracker.reissued),
            "perf/samples_per_second": len(samples) / max(1e-9, sum(self.timings.values())),
            "perf/generated_tokens_per_second": sum(lengths) / max(1e-9, self.timings["generate"]),
            "perf/sync_mb": self.sync_bytes / 1e6,
        }
        if "explained_variance" in stats:
            metrics |= {"critic/explained_variance": stats["explained_variance"]}
            metrics |= {"critic/value_mean": stats["value_mean"], "critic/return_mean": stats["return_mean"]}
        return metrics

    def sample_rows(
        self, samples: list[Sample], experience: Experience, scores: Scores, gold: Scores | None, keep: list[int]
    ) -> list[dict[str, Any]]:
        """Return the answers of a step as rows for people to read."""
        rows = []
        for number, (sample, index) in enumerate(zip(samples, keep, strict=True)):
            kl = float(np.sum(np.asarray(experience.logprobs[number]) - np.asarray(experience.ref_logprobs[number])))
            row = {
                "prompt_id": sample.prompt.id,
                "sample_index": sample.index,
                "prompt": sample.prompt.messages[-1]["content"],
                "response": sample.text,
                "reward": scores.values[index],
                "kl": kl,
                "finish_reason": sample.finish_reason,
                "policy_version": sample.versions[0],
                "reward_version": self.reward.version,
            }
            if gold is not None:
                row["gold"] = gold.values[index]
            rows.append(row)
        return rows


def gold_metrics(gold: Scores | None) -> dict[str, float]:
    """Return the mean gold score of the answers that have one."""
    if gold is None:
        return {}
    good = [value for value in gold.values if value is not None]
    return {"reward/gold": float(np.mean(good)) if good else float("nan")}


def _distinct(prompts: list[Prompt]) -> list[Prompt]:
    """Give a prompt that is in the batch twice (small data, epoch border) an id of its own, and so its own seeds."""
    seen: dict[str, int] = {}
    result = []
    for prompt in prompts:
        count = seen[prompt.id] = seen.get(prompt.id, 0) + 1
        result.append(prompt if count == 1 else replace(prompt, id=f"{prompt.id}#{count}"))
    return result


def _response(sample: Sample, aligned: Any) -> Any:
    """Return the response's part of an array that is aligned with the whole sequence."""
    return aligned[len(sample.prompt.token_ids) :]


def _element(sample: Sample, columns: dict[str, Any]) -> Element:
    """Return one sequence as an element; response columns are preceded by zeros for the prompt."""
    before = np.zeros(len(sample.prompt.token_ids), np.float32)
    columns = columns | {"weights": np.asarray(sample.action_mask, np.float32)}
    tokens = {name: [np.concatenate([before, np.asarray(c, np.float32)])] for name, c in columns.items()}
    return Element([sample.token_ids], tokens=tokens)


def _experience(
    samples: list[Sample],
    scores: Scores,
    old_logprobs: list[Any],
    ref_logprobs: list[Any],
    values: list[Any] | None,
    keep: list[int],
) -> Experience:
    """Return the samples that have a score, as the advantage computation takes them."""
    return Experience(
        scores=np.asarray([scores.values[i] for i in keep], np.float64),
        ended=[samples[i].ended for i in keep],
        logprobs=[old_logprobs[i] for i in keep],
        ref_logprobs=[ref_logprobs[i] for i in keep],
        action_masks=[samples[i].action_mask for i in keep],
        values=None if values is None else [values[i] for i in keep],
    )


def _masked_mean(samples: list[Sample], columns: list[Any]) -> float:
    """Return the mean over action tokens."""
    mask = np.concatenate([np.asarray(s.action_mask, np.float64) for s in samples])
    return float((np.concatenate(columns).astype(np.float64) * mask).sum() / mask.sum())


def _merged(updates: list[tuple[Update, float]]) -> dict[str, float]:
    """Return statistics of a step's updates: token means, extremes, the mean gradient norm."""
    if not updates:
        return {}
    means = mean_statistics(reduce_statistics(u.stats for u, _ in updates), sum(tokens for _, tokens in updates))
    means.pop("entropy", None)  # logged from the forward pass, before any update
    return {"grad_norm": float(np.mean([update.grad_norm for update, _ in updates]))} | means
