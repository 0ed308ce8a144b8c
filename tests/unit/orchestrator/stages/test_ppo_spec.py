"""What the PPO stage says of itself: without a critic it is another stage to the checks, the plan and the placement."""

from typing import Any

import pytest

from quadriga.data.errors import UserError
from quadriga.orchestrator.algorithms.registry import ESTIMATORS
from quadriga.orchestrator.stages.ppo.spec import PPO, PpoStage


def settings(**more: Any) -> PpoStage:
    return PpoStage.model_validate(
        {
            "stage": "ppo",
            "name": "x",
            "policy": {"path": "p"},
            "reward": {"type": "model", "path": "r"},
            "prompts": {"train": "x.jsonl"},
            "samples_per_prompt": 4,
        }
        | more
    )


@pytest.mark.parametrize("name", ESTIMATORS)
def test_only_gae_starts_a_critic(name: str) -> None:
    stage = settings(algorithm={"estimator": {"type": name}})
    PPO.check(stage)
    expected = ["actor", "critic", "reference", "reward"] if name == "gae" else ["actor", "reference", "reward"]
    assert [model.role for model in PPO.hosted(stage)] == expected
    assert list(PPO.makes(stage)) == (["policy", "critic"] if name == "gae" else ["policy"])
    unused = {".".join(path) for path, _ in PPO.unused(stage)}
    assert ({"critic", "critic_optimizer", "algorithm.value_clip"} <= unused) == (name != "gae")


@pytest.mark.parametrize("name", ESTIMATORS)
def test_one_answer_per_prompt_has_nothing_to_be_compared_with(name: str) -> None:
    stage = settings(algorithm={"estimator": {"type": name}}, samples_per_prompt=1)
    if not ESTIMATORS[name].needs_group:
        PPO.check(stage)
        return
    with pytest.raises(UserError, match=f"type: {name}` compares the answers to a prompt"):
        PPO.check(stage)


def test_a_gold_reward_has_no_model_of_its_own() -> None:
    with pytest.raises(UserError, match=r"`gold_reward\.type: model` needs a reward model"):
        PPO.check(settings(gold_reward={"type": "model", "path": "g"}))
