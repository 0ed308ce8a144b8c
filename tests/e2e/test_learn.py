"""`make learn`: the whole recipe on three fresh seeds, two rounds of it, and what each stage is worth by gold.

Beside PPO stand GRPO and RLOO, with as many answers per step, from the same policy and reward model.

Learning rates and the KL coefficient were chosen on other seeds. Every seed runs in its own process tree through the
command line; finished stages are skipped when the test is run again. The figures go to runs/learn/<seed>/learn.json.
"""

import json
import os
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from quadriga.actors.settings import ClusterSettings
from quadriga.data.assistant.gold import gold
from quadriga.data.assistant.phrases import INVITATION, KINDS, LIMITS
from quadriga.orchestrator.evaluation.evaluate import evaluate_models
from quadriga.orchestrator.evaluation.metrics import Answer, Measures, compare
from quadriga.orchestrator.evaluation.settings import EvaluationSettings
from quadriga.orchestrator.tracking.tracker import read_metrics

pytestmark = pytest.mark.learn
ROOT = Path(__file__).resolve().parents[2]
RUNS = Path(os.environ.get("QUADRIGA_LEARN_DIR", ROOT / "runs" / "learn"))
SEEDS = [int(seed) for seed in os.environ.get("QUADRIGA_LEARN_SEEDS", "11,12,13").split(",")]
CRITICLESS = ("grpo", "rloo")
"""Configs of algorithms without a critic."""
EVALUATION = EvaluationSettings.model_validate(
    {
        "prompts": {"rows": [{"builtin": "assistant.heldout_prompts", "rows": 320, "seed": 3000}], "max_tokens": 256},
        "gold_reward": {"type": "function", "function": "quadriga.data.assistant.gold:gold"},
        "sampling": {"max_tokens": 32},
        "rows": 320,
    }
)


@pytest.fixture(scope="module", params=SEEDS)
def learned(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Everything measured of one seed."""
    seed, began = request.param, time.monotonic()
    run = RUNS / str(seed)
    quadriga(
        "configs/assistant/pipeline.yaml", f"run_dir={run}", f"seed={seed}", f"name=learn-{seed}", "rounds=2",
        "stages.sft.config.total_steps=450", "stages.sft.config.data.train.0.rows=12000", "tracking.wandb=false",
        "evaluation=null",
    )  # fmt: skip
    sft, reward = run / "round-0/sft/export/policy", run / "round-1/reward/export/reward"
    quadriga(
        "configs/assistant/ppo.yaml", f"run_dir={run}/gold", f"seed={seed}", f"policy.path={sft}",
        f"reference.path={sft}", f"critic={{path: {reward}}}", "tracking.wandb=false", "name=gold-as-reward",
        "reward={type: function, function: quadriga.data.assistant.gold:gold}",
    )  # fmt: skip
    for name in CRITICLESS:
        quadriga(
            f"configs/assistant/{name}.yaml", f"run_dir={run}/{name}", f"seed={seed}", f"policy.path={sft}",
            f"reference.path={sft}", f"reward.path={reward}", "tracking.wandb=false", f"name={name}",
        )  # fmt: skip
    policies = {
        "sft": sft,
        "ppo-1": run / "round-1/ppo/export/policy",
        "ppo-2": run / "round-2/ppo/export/policy",
        "gold-as-reward": run / "gold/export/policy",
    } | {name: run / name / "export/policy" for name in CRITICLESS}
    results = evaluate_models(
        {name: str(path) for name, path in policies.items()},
        EVALUATION,
        ClusterSettings(),
        run / "logs",
        reward=str(reward),
        reference=str(sft),
        seed=seed,
        samples_per_prompt=4,
    )
    sampled, greedy = results["sft"], {name: result.greedy for name, result in results.items()}
    assert greedy["sft"] is not None and greedy["ppo-1"] is not None and sampled.best is not None
    rates = {"sampled": compare(results["ppo-1"], sampled), "greedy": compare(greedy["ppo-1"], greedy["sft"])}
    found = {
        "seed": seed,
        "minutes": (time.monotonic() - began) / 60,
        "heldout": [row["eval/loss"] for row in read_metrics(run / "round-0/sft/metrics.jsonl") if "eval/loss" in row],
        "win_rate": {way: vars(rate) for way, rate in rates.items() if rate is not None},
        "criticless": {name: vars(compare(results[name], sampled)) for name in CRITICLESS},
        "gold": {name: result.score for name, result in results.items()},
        "greedy": {name: result.score for name, result in greedy.items() if result is not None},
        "by_kind": {name: results[name].by_kind for name in ("sft", "ppo-1", "ppo-2", *CRITICLESS)},
        "best_of_4": sampled.best.score,
        "best_of_4_by_gold": best_by_gold(sampled.answers),
        "kl": {name: result.kl for name, result in results.items()},
        "reward_score": {name: result.reward_score for name, result in results.items()},
        "pair_accuracy": pair_accuracy(sampled.answers),
        "constant": constant_answers(sampled),
    }
    (run / "learn.json").write_text(json.dumps(found, indent=1))
    print(json.dumps({key: value for key, value in found.items() if key != "by_kind"}, indent=1), file=sys.stderr)
    return found


def test_fine_tuning_ends_when_heldout_loss_stops_falling(learned: dict[str, Any]) -> None:
    """The last two measurements together improve the loss by less than 3 %, and gold is at least 0.4."""
    *_, before, _, last = learned["heldout"]
    assert last > before * 0.97
    assert learned["gold"]["sft"] >= 0.4


def test_ppo_wins_against_fine_tuning(learned: dict[str, Any]) -> None:
    """At the training temperature at least 0.65, greedy at least 0.55, both intervals above one half."""
    for way, least in (("sampled", 0.65), ("greedy", 0.55)):
        rate = learned["win_rate"][way]
        assert rate["n"] >= 300 and rate["mean"] >= least and rate["low"] > 0.5, (way, rate)


def test_no_kind_of_prompt_gets_worse(learned: dict[str, Any]) -> None:
    """Not by more than 0.03; look-alikes are refused at most 5 points more often."""
    sft, ppo = learned["by_kind"]["sft"], learned["by_kind"]["ppo-1"]
    for kind in KINDS:
        assert ppo[kind]["score"] >= sft[kind]["score"] - 0.03, kind
    assert ppo["lookalike"]["refused"] <= sft["lookalike"]["refused"] + 0.05


@pytest.mark.parametrize("name", CRITICLESS)
def test_without_a_critic_it_wins_too(learned: dict[str, Any], name: str) -> None:
    """At least 0.65 at the training temperature, and no kind of prompt gets worse by more than 0.03."""
    rate = learned["criticless"][name]
    assert rate["n"] >= 300
    assert rate["mean"] >= 0.65
    assert rate["low"] > 0.5
    sft, after = learned["by_kind"]["sft"], learned["by_kind"][name]
    for kind in KINDS:
        assert after[kind]["score"] >= sft[kind]["score"] - 0.03, kind


def test_the_reward_model_orders_answers_as_gold_does(learned: dict[str, Any]) -> None:
    """Pairs of answers to held-out prompts that gold tells apart, without the annotator's noise."""
    assert learned["pair_accuracy"] > 0.75


def test_answers_that_ignore_the_question_lose(learned: dict[str, Any]) -> None:
    """Always refusing, never knowing, always saying one thing: each below SFT."""
    assert max(learned["constant"].values()) < learned["gold"]["sft"]


def test_a_second_round_keeps_what_the_first_won(learned: dict[str, Any]) -> None:
    """Gold within 0.02, or better."""
    assert learned["gold"]["ppo-2"] >= learned["gold"]["ppo-1"] - 0.02


def quadriga(*arguments: str) -> None:
    """Run a config to its end."""
    subprocess.run([sys.executable, "-m", "quadriga.launch", "run", *arguments], cwd=ROOT, check=True)


def best_by_gold(answers: list[Answer]) -> float:
    """What best-of-n could reach: mean over prompts of their best answer's gold."""
    best: dict[str, float] = {}
    for answer in answers:
        if answer.gold is not None:
            best[answer.prompt] = max(best.get(answer.prompt, 0.0), answer.gold["score"])
    return sum(best.values()) / len(best)


def pair_accuracy(answers: list[Answer]) -> float:
    """Share of pairs of one prompt's answers, of different gold, that the reward model orders likewise."""
    prompts: dict[str, list[Answer]] = {}
    for answer in answers:
        prompts.setdefault(answer.prompt, []).append(answer)
    right = total = 0.0
    for own in prompts.values():
        for a, b in combinations(own, 2):
            assert a.gold is not None and b.gold is not None and a.reward is not None and b.reward is not None
            difference = a.gold["score"] - b.gold["score"]
            if abs(difference) > 1e-9:
                total += 1
                right += 0.5 if a.reward == b.reward else float((a.reward > b.reward) == (difference > 0))
    return right / total


def constant_answers(sft: Measures) -> dict[str, float]:
    """Gold of policies that do not read the question, on the same prompts; the one answer is SFT's most frequent."""
    from quadriga.data.loading.datasets import load_prompts
    from quadriga.data.tokens.tokenizer import load_tokenizer

    folder = next(RUNS.glob("*/round-0/sft/export/policy"))
    prompts = load_prompts(EVALUATION.prompts.data, load_tokenizer(folder), 0).train[: EVALUATION.rows]
    texts = [answer.text for answer in sft.answers]
    policies = {
        "always refusing": "I will not help with that. That would hurt someone. Please talk to a friend.",
        "never knowing": "I do not know.",
        "naming its limits": f"{LIMITS} {INVITATION}",
        "one answer": max(sorted(set(texts)), key=texts.count),
    }
    result = {}
    for name, text in policies.items():
        rows = [{"prompt": p.messages, "messages": p.messages, "response": text, "meta": p.meta} for p in prompts]
        result[name] = sum(row["score"] for row in gold(rows)) / len(rows)
    return result
