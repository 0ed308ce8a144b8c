"""The registry of stages, and what each StageSpec says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from helpers.small_stages import stage

from quadriga.data.errors import UserError
from quadriga.data.registry import import_object
from quadriga.data.rundir import RunDir
from quadriga.orchestrator.settings import StageBase
from quadriga.orchestrator.stages.base import StageSpec
from quadriga.orchestrator.stages.registry import STAGES, spec_named, spec_of

Settings = Callable[..., StageBase]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Kind, changes -> settings of a small stage."""
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, '
        '"num_attention_heads": 1}'
    )

    def make(kind: str, **changes: Any) -> StageBase:
        config = stage(kind, tmp_path, tmp_path, Path("judge"))
        return STAGES[kind].settings.model_validate(config | changes)

    return make


@pytest.mark.parametrize("kind", STAGES)
def test_a_registered_name_is_that_of_the_settings(kind: str) -> None:
    assert get_args(STAGES[kind].settings.model_fields["stage"].annotation) == (kind,)


@pytest.mark.parametrize("kind", STAGES)
def test_trainers_and_loaders_exist(kind: str, settings: Settings) -> None:
    spec = STAGES[kind]
    assert callable(import_object(spec.trainer).execute)
    assert all(callable(import_object(data.loader)) for data in spec.datasets(settings(kind)))


@pytest.mark.parametrize("kind", STAGES)
def test_a_stage_with_an_engine_says_how_answers_are_drawn(kind: str, settings: Settings) -> None:
    stage = settings(kind)
    assert (spec_of(stage).engine(stage) is None) == (spec_of(stage).sampling(stage) is None)


@pytest.mark.parametrize(
    ("kind", "models"),
    [
        ("pretrain", ["actor logprobs trained"]),
        ("sft", ["actor logprobs trained"]),
        ("reward", ["reward scalar trained"]),
        ("rank", ["rollout logprobs"]),
        (
            "ppo",
            [
                "actor logprobs trained",
                "critic scalar trained",
                "reference logprobs",
                "reward scalar",
                "rollout logprobs",
            ],
        ),
    ],
)
def test_models(kind: str, models: list[str], settings: Settings) -> None:
    stage = settings(kind)
    found = spec_of(stage).models(stage)
    assert [f"{model.role} {model.head}{' trained' * model.trained}" for model in found] == models


def test_a_reward_function_needs_no_reward_model(settings: Settings) -> None:
    stage = settings("ppo", reward={"type": "function", "function": "json:dumps"}, critic={"path": "/critic"})
    models = {model.role: model for model in spec_of(stage).models(stage)}
    assert "reward" not in models
    assert (models["critic"].source.path, models["critic"].key) == ("/critic", "critic")


@pytest.mark.parametrize(
    ("kind", "longest"),
    [("sft", (64, "data.max_tokens")), ("ppo", (44, "prompts.max_tokens + sampling.max_tokens"))],
)
def test_longest_sequences(kind: str, longest: tuple[int, str], settings: Settings) -> None:
    stage = settings(kind)
    assert spec_of(stage).longest(stage) == longest


def test_documents_are_packed_into_elements(settings: Settings) -> None:
    from quadriga.data.records import Tokens

    stage = settings("pretrain")  # rows of up to 64 tokens
    rows = [Tokens([1] * length, [1] * length) for length in (40, 40, 20)]
    elements = spec_of(stage).elements(stage, rows)
    assert sorted(length for element in elements for length in element) == [20, 40, 40]
    assert all(sum(element) <= 64 for element in elements)


def test_only_rankings_are_results_without_a_checkpoint(tmp_path: Path) -> None:
    run = RunDir.create(str(tmp_path / "run"))
    (run.samples_dir / "rankings-00000.jsonl").write_text("")
    assert STAGES["rank"].has_results(run)
    assert not STAGES["sft"].has_results(run)


def test_rounds_are_marked_in_rankings() -> None:
    assert [STAGES["rank"].round_settings(number) for number in (0, 1, 2)] == [{"round": 1}, {"round": 1}, {"round": 2}]
    assert STAGES["ppo"].round_settings(2) == {}


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UserError, match="`stage: rewrd` is not a stage; did you mean `reward`"):
        spec_named("rewrd")


def test_a_module_without_a_spec_is_refused() -> None:
    with pytest.raises(UserError, match="`stage: json:dumps` cannot be used: `json:dumps` is not a stage"):
        spec_named("json:dumps")


def test_a_users_spec_is_found() -> None:
    spec = spec_named("quadriga.orchestrator.stages.sft.spec:SFT")
    assert isinstance(spec, StageSpec)
    assert spec is STAGES["sft"]
