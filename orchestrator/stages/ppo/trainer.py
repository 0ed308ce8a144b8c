"""PPO: one step from prompts to new weights in the rollout engine, top to bottom."""

from functools import partial
from pathlib import Path
from typing import Any

from quadriga.actors.model.folder import (
    check_context,
    check_reward_head,
    check_same_tokenizer,
    model_path,
    reward_shift,
)
from quadriga.actors.model.group import Update
from quadriga.actors.model.heads import ModelSpec, scalar_spec
from quadriga.actors.settings import ModelSettings
from quadriga.data.errors import UserError
from quadriga.data.records import Prompt
from quadriga.kernels.losses.value import ValueClip
from quadriga.orchestrator.algorithms.aggregation import token_weights
from quadriga.orchestrator.algorithms.kl import KLController
from quadriga.orchestrator.cluster.health import State
from quadriga.orchestrator.cluster.processes import ModelUse, RolloutPlan
from quadriga.orchestrator.rewards.base import Reward, RewardContext, RewardSettings, Scores
from quadriga.orchestrator.rl.advantages import add_advantages
from quadriga.orchestrator.rl.experience import Experience
from quadriga.orchestrator.rl.passes import LogprobsPass, ValuesPass
from quadriga.orchestrator.rl.report import (
    gold_metrics,
    mean_entropy,
    policy_metrics,
    reward_metrics,
    rollout_metrics,
    sample_rows,
    silent_groups,
)
from quadriga.orchestrator.rl.sources import OnPolicy, SampleSource
from quadriga.orchestrator.rl.updates import Term, Trainee, minibatches, train
from quadriga.orchestrator.rollout.answer_text import answer_text
from quadriga.orchestrator.rollout.pool import GroupWeights, RolloutPool
from quadriga.orchestrator.stages.ppo.spec import PpoStage
from quadriga.orchestrator.training import invariants
from quadriga.orchestrator.training import lr_schedule as schedule
from quadriga.orchestrator.training.checkpoint import Export
from quadriga.orchestrator.training.trainer import TrainingStage


class Ppo(TrainingStage):
    """PPO: drives actor, critic, reference, reward model and the vLLM workers that answer."""

    trained = ("actor", "critic")
    settings: PpoStage

    # Set by `load_inputs`.
    prompts: list[Prompt]
    has_critic: bool
    policy_path: str
    reference_path: str
    reward_path: str | None
    """Folder of the reward model; None when the reward is not a model."""
    starts_as_reference: bool
    """Whether policy and reference are the same weights before the first step."""
    max_tokens: int
    """Longest sequence: prompt and answer."""

    # Set by `setup_workers`.
    dtype: str
    weights: GroupWeights
    pool: RolloutPool
    source: SampleSource
    reward: Reward
    gold: Reward | None
    trainees: list[Trainee]
    mentioned: bool
    """Whether prompts that teach nothing have been mentioned in this attempt."""

    # Set by `sync_after_restore`.
    kl: KLController

    def load_inputs(self) -> None:
        """Load tokenizer and prompts, and resolve what each role starts from."""
        from quadriga.data.loading.datasets import load_prompts
        from quadriga.data.tokens.tokenizer import load_tokenizer

        settings = self.settings
        self.has_critic = settings.algorithm.needs_critic
        self.policy_path = model_path(settings.policy, "policy")
        self.tokenizer = load_tokenizer(self.policy_path)
        self.max_tokens = settings.prompts.max_tokens + settings.sampling.max_tokens
        check_context(self.policy_path, self.max_tokens, "prompts.max_tokens + sampling.max_tokens")
        split = load_prompts(settings.prompts, self.tokenizer, settings.seed)
        self.prompts = split.train
        self.skipped = split.skipped
        self.reference_path = model_path(settings.reference, "reference") if settings.reference else self.policy_path
        self.starts_as_reference = Path(self.reference_path).resolve() == Path(self.policy_path).resolve()
        self.reward_path = None
        if settings.reward_path is not None:
            self.reward_path = model_path(ModelSettings(path=settings.reward_path), "reward")
            check_reward_head(self.reward_path)
            check_same_tokenizer(self.policy_path, self.reward_path, settings.prompts.chat_template)
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
        """Create the source of samples, the rewards, and the losses of what is trained."""
        from quadriga.data.tokens.chat import end_tokens

        settings = self.settings
        self.dtype = settings.cluster.on(self.running.device).dtype
        stops = end_tokens(self.tokenizer)
        self.weights = GroupWeights(self.running)
        self.pool = RolloutPool(self.running.fleet, stops, partial(answer_text, self.tokenizer, stops), self.weights)
        self.source = OnPolicy(
            self.pool,
            self.prompts,
            settings.prompts_per_step,
            settings.samples_per_prompt,
            settings.sampling,
            settings.seed,
        )
        self.reward = self._start(settings.reward, "score", "reward.log")
        self.gold = self._start(settings.gold_reward, "gold", "gold.log") if settings.gold_reward else None
        self.mentioned = False
        algorithm = settings.algorithm
        parts = [Term(part.build(), part.coefficient, part.name) for part in algorithm.parts]
        self.trainees = [Trainee("actor", [Term(algorithm.loss.build()), *parts])]
        if self.has_critic:
            self.trainees.append(Trainee("critic", [Term(ValueClip(algorithm.value_clip))]))

    def sync_after_restore(self) -> None:
        """Initialise the KL controller, and push the current weights to the engines, which start without any."""
        self.kl = KLController(self.settings.algorithm.kl)
        if self.state.kl:
            self.kl.load_state_dict(self.state.kl)
        self.pool.sync(self.state.step)

    def step(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Run the parts of one step in order; the caller commits it."""
        groups, temperature = self.running.groups, self.settings.sampling.temperature
        with self.timed("generate"):
            experience = Experience(self.source.samples(self.state.step, self.progress.part("generate")))
        # These passes, and a reward model's, depend on the answers only: they run side by side, collected in order.
        reference = LogprobsPass("reference", "ref_logprobs", temperature).start(groups["reference"], experience)
        policy = LogprobsPass("old_logprobs", "old_logprobs", temperature, "entropy").start(groups["actor"], experience)
        critic = ValuesPass("values", "old_values").start(groups["critic"], experience) if self.has_critic else None
        with self.timed("score"):
            scores = self.reward.start(experience.samples).result()
            experience.add_numbers("score", scores.values)
            experience.add_numbers("reward_parts", scores.parts)
            experience.add_numbers("reward_texts", scores.texts or [{}] * len(experience))
        with self.timed("reference"):
            experience.add(reference.result())
        with self.timed("old_logprobs"):
            experience.add(policy.result())
            rollout = [sample.rollout_logprobs for sample in experience.samples]
            metrics = invariants.engine_agrees(rollout, experience.columns["old_logprobs"], self.dtype)
        with self.timed("values"):
            experience.add(critic.result() if critic else {})
        with self.timed("advantages"):
            scored = [value is not None for value in scores.values]
            learned = experience.keep(scored)
            stats = add_advantages(learned, self.settings.algorithm, self.kl.coefficient)
            self.mention(silent_groups(stats))
            if self.state.step == 0 and self.starts_as_reference:
                invariants.start_kl_is_zero(stats["kl"], self.dtype)
        with self.timed("update"):
            metrics |= self.update(learned)
        with self.timed("sync"):
            self.pool.sync(self.state.step + 1)
        metrics |= self.metrics(experience, scores, stats) | gold_metrics(self.score_by_gold(experience))
        self.state.samples += len(experience)
        self.state.tokens += sum(len(sequence) for sequence in experience.sequences)
        self.kl.update(stats["kl_per_sample"], len(learned))
        self.state.kl = self.kl.state_dict()
        return metrics, sample_rows(experience.keep(scored), self.reward.version)

    def abort_step(self) -> None:
        """Discard the answers in flight."""
        self.pool.abort()

    def teardown(self) -> None:
        """Release the rewards."""
        for reward in (self.reward, self.gold):
            if reward is not None:
                reward.close()

    def exports(self) -> dict[str, Export]:
        """Return policy and critic."""
        exports = {"policy": Export(self.group("actor"), "policy", {})}
        if self.has_critic:
            exports["critic"] = Export(self.group("critic"), "critic", {"classifier_dropout": 0.0})
        return exports

    def update(self, experience: Experience) -> dict[str, float]:
        """Run the epochs of minibatches; actor and critic train at the same time."""
        settings, algorithm, step = self.settings, self.settings.algorithm, self.state.step
        masks = [sample.action_mask for sample in experience.samples]
        weights, units = token_weights(masks, algorithm.aggregation, settings.sampling.max_tokens)
        experience.add({"weights": weights})
        experience.add_numbers("units", units)
        rates = {
            "actor": schedule.lr(step, settings.total_steps, settings.optimizer),
            "critic": schedule.lr(step, settings.total_steps, settings.critic_optimizer),
        }
        order = minibatches(len(experience), algorithm.minibatch_size, algorithm.epochs, settings.seed, step)

        def check_first(updates: dict[str, Update], tokens: float) -> None:
            stats = updates["actor"].stats
            invariants.first_ratio_is_one(stats["log_ratio_max"], stats["log_ratio"] / tokens, self.dtype)

        groups, temperature = self.running.groups, settings.sampling.temperature
        return train(self.trainees, groups, experience, order, rates, temperature, check_first, self.dtype != "float32")

    def score_by_gold(self, experience: Experience) -> Scores | None:
        """Score the answers by the gold reward, which training never sees; None without one."""
        if self.gold is None:
            return None
        with self.timed("gold"):
            scores = self.gold.start(experience.samples).result()
        experience.add_numbers("gold", scores.values)
        return scores

    def mention(self, sentence: str | None) -> None:
        """Show a sentence about this step, the first time in this attempt; the metrics have all of them."""
        if sentence is not None and not self.mentioned:
            self.mentioned = True
            self.progress.note(f"  step {self.state.step + 1}: {sentence}")

    def metrics(self, experience: Experience, scores: Scores, stats: dict[str, float]) -> dict[str, float]:
        """Return the metrics of a step besides its losses: reward, KL, lengths, speed."""
        metrics = reward_metrics(scores, stats) | policy_metrics(stats, self.kl.coefficient)
        metrics |= rollout_metrics(experience.samples, self.timings)
        return metrics | {
            "actor/entropy": mean_entropy(experience),
            "rollout/eos_rate": stats["ended"],
            "rollout/policy_version": float(self.state.step),
            "system/rollout_workers": float(len(self.running.fleet.in_state(State.HEALTHY, State.SUSPECT))),
            "system/requests_reissued": float(self.pool.request_tracker.reissued),
            "perf/sync_mb": self.weights.bytes / 1e6,
        }

    def _start(self, settings: RewardSettings, phase: str, log: str) -> Reward:
        return settings.start(RewardContext(phase, self.run.logs_dir / log, self.running.groups))
