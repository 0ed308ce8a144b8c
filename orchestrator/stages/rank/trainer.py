"""Ranking: several answers per prompt from the current policy, ranked: the data of the next reward model."""

import json
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np

from quadriga.actors.model.folder import check_context, model_path
from quadriga.data.atomic_files import write_text_atomic
from quadriga.data.loading.batch_order import hash_seed
from quadriga.data.records import Prompt, Ranking, Response, Sample
from quadriga.data.rundir import RunDir
from quadriga.orchestrator.cluster.processes import RolloutPlan, connected, processes
from quadriga.orchestrator.faults.recovery import Recovery
from quadriga.orchestrator.rewards.base import Reward, RewardContext
from quadriga.orchestrator.rollout.answer_text import answer_text
from quadriga.orchestrator.rollout.pool import RolloutPool
from quadriga.orchestrator.stages.rank.spec import CHUNK_PROMPTS, RankStage
from quadriga.orchestrator.tracking.console import StageProgress
from quadriga.orchestrator.tracking.tracker import Replay
from quadriga.orchestrator.training.stop import Stop
from quadriga.orchestrator.training.trainer import note_skipped


class Rank:
    """One pass over the prompts, in chunks that survive an interruption."""

    def __init__(self, settings: RankStage, run: RunDir):
        self.settings, self.run = settings, run

    def execute(self, progress: StageProgress, replay: Replay = "exact") -> bool:
        """Sample, score, rank and write export/rankings.jsonl. Return False when stopped before the end."""
        from quadriga.data.loading.datasets import load_prompts
        from quadriga.data.tokens.chat import end_tokens
        from quadriga.data.tokens.tokenizer import load_tokenizer

        settings = self.settings
        path = model_path(settings.policy, "policy")
        tokenizer = load_tokenizer(path)
        longest = settings.prompts.max_tokens + settings.sampling.max_tokens
        check_context(path, longest, "prompts.max_tokens + sampling.max_tokens")
        split = load_prompts(settings.prompts, tokenizer, settings.seed)
        prompts = split.train
        chunks = [prompts[start : start + CHUNK_PROMPTS] for start in range(0, len(prompts), CHUNK_PROMPTS)]
        due = [number for number in range(len(chunks)) if not self._part(number).is_file()]
        if due:
            losses = Recovery(settings.cluster.recovery, self.run.note).note
            with (
                connected(settings.cluster) as dashboard,
                Stop(self.run).listening() as stop,
                progress.waiting("starting processes"),
                processes(
                    settings.cluster, [], RolloutPlan(path, longest, load=True), str(self.run.logs_dir), on_loss=losses
                ) as running,
                closing(
                    settings.annotator.start(RewardContext("rank", self.run.logs_dir / "annotator.log"))
                ) as annotator,
            ):
                progress.started(len(chunks) - len(due), len(chunks), dashboard, None, running.logs)
                note_skipped(split.skipped, self.run, progress)
                stops = end_tokens(tokenizer)
                pool = RolloutPool(running.fleet, stops, partial(answer_text, tokenizer, stops))
                for number in due:
                    rankings = self._rank(pool, annotator, chunks[number], number, path, progress)
                    lines = [json.dumps(ranking.to_row(), ensure_ascii=False) for ranking in rankings]
                    write_text_atomic(self._part(number), "".join(line + "\n" for line in lines))
                    progress.step(number + 1, {"rankings": len(rankings)})
                    if stop.requested:
                        break
        if not all(self._part(number).is_file() for number in range(len(chunks))):
            return False
        self._merge(len(chunks))
        return True

    def _rank(
        self,
        pool: RolloutPool,
        annotator: Reward,
        prompts: list[Prompt],
        number: int,
        model: str,
        progress: StageProgress,
    ) -> list[Ranking]:
        settings = self.settings
        low, high = settings.answers_per_prompt
        generator = np.random.default_rng(hash_seed(settings.seed, number))
        counts = [int(count) for count in generator.integers(low, high + 1, len(prompts))]
        samples = pool.generate(prompts, counts, settings.sampling, settings.seed, number, progress.part("sample"))
        scores = annotator.start(samples).result().values
        rankings, start = [], 0
        for prompt, count in zip(prompts, counts, strict=True):
            own = list(zip(samples[start : start + count], scores[start : start + count], strict=True))
            start += count
            scored = _distinct_texts([(sample, score) for sample, score in own if score is not None])
            if len(scored) >= 2:
                rankings.append(self._ranking(prompt, scored, model, annotator.version))
        return rankings

    def _ranking(self, prompt: Prompt, answers: list[tuple[Sample, float]], model: str, rater: str) -> Ranking:
        responses = [
            Response(str(sample.index), sample.text, model=model, logprob=float(sum(sample.rollout_logprobs)))
            for sample, _ in answers
        ]
        return Ranking(
            id=f"{self.settings.name}/{prompt.id}",
            messages=prompt.messages,
            responses=responses,
            ranking=tied_groups({str(s.index): score for s, score in answers}, self.settings.tie_margin),
            rater=rater,
            source="ai",
            iteration=self.settings.round,
            meta=dict(prompt.meta),
        )

    def _merge(self, parts: int) -> None:
        """Write earlier rounds' rankings first, then this round's."""
        files = [Path(path) for path in self.settings.earlier_rankings]
        files += [self._part(number) for number in range(parts)]
        text = "".join(file.read_text(encoding="utf-8") for file in files)
        write_text_atomic(self.run.export_dir / "rankings.jsonl", text)

    def _part(self, number: int) -> Path:
        return self.run.samples_dir / f"rankings-{number:05d}.jsonl"


def tied_groups(scores: dict[str, float], margin: float) -> list[list[str]]:
    """Return ids from best to worst, in groups: an id within `margin` of a group's best score joins that group."""
    groups: list[list[str]] = []
    best = 0.0
    for id_ in sorted(scores, key=lambda i: (-scores[i], i)):
        if groups and best - scores[id_] <= margin:
            groups[-1].append(id_)
        else:
            groups.append([id_])
            best = scores[id_]
    return groups


def _distinct_texts(answers: list[tuple[Sample, float]]) -> list[tuple[Sample, float]]:
    """Keep one of each text, outer space aside: most chat templates trim it, so both would be the same answer."""
    seen: dict[str, tuple[Sample, float]] = {}
    for sample, score in answers:
        seen.setdefault(sample.text.strip(), (sample, score))
    return list(seen.values())
