"""Loading and composing configs, and the messages of their errors."""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quadriga.data.errors import UserError
from quadriga.launch.config.load import build, json_schema, load_config, placeholders, resolved
from quadriga.orchestrator.pipeline_settings import PipelineStage
from quadriga.orchestrator.stages.ppo.spec import PpoStage
from quadriga.orchestrator.stages.sft.spec import SftStage

Write = Callable[..., Path]


def refusal(path: Path, *overrides: str) -> str:
    """Return the one-line message with which a config is refused."""
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


SFT = textwrap.dedent(
    """\
    stage: sft
    name: tune
    model: {path: some/model}
    data:
      train: rows.jsonl
    optimizer:
      lr: 1e-4
    """
)


def test_defaults_and_numbers(write: Write) -> None:
    stage = load_config(write(SFT))
    assert isinstance(stage, SftStage)
    assert stage.optimizer.lr == 1e-4
    assert stage.batch_size == 32
    assert stage.data.train[0].path == "rows.jsonl"
    assert resolved(stage)["optimizer"]["schedule"] == "cosine"


def test_yaml_scalars_are_not_surprising(write: Write) -> None:
    text = SFT + "cluster:\n  deepspeed: {a: no, b: 010, c: 1:30, d: 1_000, e: 2024-01-01, f: .5, g: 3e2, h: -1.5E-3}\n"
    extra = load_config(write(text)).cluster.deepspeed
    assert extra == {
        "a": "no", "b": "010", "c": "1:30", "d": 1000, "e": "2024-01-01", "f": 0.5, "g": 300.0, "h": -1.5e-3,
    }  # fmt: skip
    assert type(extra["g"]) is float


def test_unknown_key_names_the_line_and_the_nearest_key(write: Write) -> None:
    path = write(SFT + "total_step: 3\n")
    assert refusal(path) == f"`total_step` is not a setting ({path}, line 8); did you mean `total_steps`?"


def test_a_key_of_another_section_is_found_there(write: Write) -> None:
    assert "did you mean `optimizer.warmup_steps`?" in refusal(write(SFT + "warmup_steps: 3\n"))


def test_nested_unknown_key(write: Write) -> None:
    path = write(SFT.replace("  lr:", "  learning: 2\n  lr:") + "cluster:\n  actor: {rank: 2}\n")
    text = refusal(path)
    assert f"`optimizer.learning` is not a setting ({path}, line 7)" in text
    assert f"`cluster.actor.rank` is not a setting ({path}, line 10); did you mean `ranks`?" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("batch_size=0", "`batch_size` is 0 (the command line): should be greater than or equal to 1."),
        ("optimizer.lr=fast", "`optimizer.lr` is 'fast' (the command line): should be a valid number"),
        ("optimizer.schedule=cosin", "should be 'constant', 'linear' or 'cosine'."),
        ("model.shape={a: 1}", "give exactly one of `path` and `shape`"),
        ("data.train=[]", "`data.train` is []"),
        ("stage=sfd", "`stage: sfd` (the command line) is not a stage; did you mean `sft`?"),
        ("stage=null", "`stage` is missing"),
        ("nonsense", "`nonsense` is not a valid override: write `key.path=value`"),
        ("name.first=1", "`name.first` cannot be set: `name` is `tune`"),
        ("model=models/pockt", "did you mean `models/pocket`?"),
    ],
)
def test_wrong_values(write: Write, change: str, message: str) -> None:
    assert message in refusal(write(SFT), change)


def test_missing_key(write: Write) -> None:
    path = write(SFT.replace("  train: rows.jsonl", "  max_tokens: 64"))
    assert refusal(path) == f"`data.train` is missing ({path}, line 4)."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stage: [", "line 1"),
        ("a: 1\nb: 2\na: 3\n", "line 3: not valid YAML: `a` is given twice"),
        ("- a\n", "is not a mapping"),
        ("", "is not a mapping"),
        ("a: &x {b: *y}\n", "not valid YAML"),
    ],
)
def test_not_yaml(write: Write, text: str, message: str) -> None:
    assert message in refusal(write(text))


def test_missing_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.yaml") == f"There is no config file {tmp_path / 'none.yaml'}."


def test_overrides_are_yaml_and_reach_lists(write: Write) -> None:
    stage = load_config(
        write(SFT),
        ["optimizer.betas=[0.8, 0.9]", "data.train=[x]", "data.train.0.path=a.jsonl", "data.train.1=b.jsonl", "seed=7"],
    )
    assert stage.optimizer.betas == (0.8, 0.9)
    assert stage.seed == 7
    assert [source.path for source in stage.data.train] == ["a.jsonl", "b.jsonl"]


def test_sections_may_be_files_presets_or_folders(write: Write, model: Path) -> None:
    write("shape: {model_type: llama}", "mine.yaml")
    text = SFT.replace("{path: some/model}", "mine") + "cluster: clusters/local\n"
    stage = load_config(write(text), ["cluster.actor.ranks=2"])
    assert stage.model.shape == {"model_type": "llama"}
    assert (stage.cluster.device, stage.cluster.actor.ranks) == ("cpu", 2)
    assert load_config(write(SFT), [f"model={model}"]).model.path == str(model)
    assert load_config(write(SFT), ["model=models/pocket"]).model.shape["hidden_size"] == 128


def test_an_error_in_an_included_file_names_that_file(write: Write) -> None:
    mine = write("shape: {model_type: llama}\npaht: x\n", "mine.yaml")
    path = write(SFT.replace("{path: some/model}", "mine"))
    assert refusal(path) == f"`model.paht` is not a setting ({mine}, line 2); did you mean `path`?"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (["optimizer.schedule=constant", "optimizer.min_lr_ratio=0.2"], "optimizer.min_lr_ratio"),
        (["heldout_every=5"], "heldout_every"),
        (["checkpoint.keep=2"], "checkpoint.keep"),
        (["tracking.wandb=false", "tracking.project=x"], "tracking.project"),
        (["stop_when_heldout_rises=true", "data.heldout_fraction=0.1"], "stop_when_heldout_rises"),
        (["data.train=[{path: a.jsonl, seed: 3}]"], "data.train.0.seed"),
        (["data.train=[{builtin: assistant.text, rows: 3, columns: {text: t}}]"], "data.train.0.columns"),
    ],
)
def test_a_setting_without_effect_is_an_error(write: Write, changes: list[str], key: str) -> None:
    assert f"`{key}` (the command line) would have no effect: " in refusal(write(SFT), *changes)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (["sampling.temperature=0", "sampling.top_k=3"], "sampling.top_k"),
        (["algorithm.kl.coefficient=0", "algorithm.kl.adaptive={target: 3}"], "algorithm.kl.adaptive"),
        (["prompts_per_step=4", "algorithm.minibatch_size=5"], "algorithm.minibatch_size"),
    ],
)
def test_ppo_settings_without_effect(write: Write, ppo: dict[str, Any], changes: list[str], key: str) -> None:
    assert f"`{key}` (the command line) would have no effect: " in refusal(write(ppo), *changes)


def test_a_default_without_effect_is_not_an_error(write: Write, ppo: dict[str, Any]) -> None:
    stage = load_config(write(ppo), ["prompts_per_step=4", "algorithm.kl.coefficient=0"])
    assert isinstance(stage, PpoStage)
    assert stage.algorithm.minibatch_size == 64


def test_a_resolved_config_loads_again(write: Write, ppo: dict[str, Any], pipeline: Path) -> None:
    """It spells out every default, also those that have no effect."""
    small = load_config(write(ppo), ["prompts_per_step=4", "algorithm.kl.coefficient=0", "tracking.wandb=false"])
    for stage in (small, load_config(write(SFT))):
        assert load_config(write(resolved(stage), "resolved.yaml")) == stage
    whole = load_config(pipeline)
    again = load_config(write(resolved(whole), "resolved.yaml"))
    assert [build(entry.config) for entry in again.stages] == [build(entry.config) for entry in whole.stages]


def test_secrets_stay_in_the_environment(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    text = refusal(write(SFT), "cluster.deepspeed.monitor.api_key=abc")
    assert "`cluster.deepspeed.monitor.api_key` (the command line) holds a secret" in text
    assert "abc" not in text
    monkeypatch.setenv("WANDB_API_KEY", "local-0123456789")
    text = refusal(write(SFT), "data.train=[x.jsonl, /home/local-0123456789/y]")
    assert "`data.train.1` (the command line) holds a secret" in text
    assert "0123456789" not in text


PIPELINE = textwrap.dedent(
    """\
    stage: pipeline
    name: all
    seed: 5
    cluster:
      dtype: bfloat16
      actor: {threads: 1}
    stages:
      - name: tune
        config: sft.yaml
      - name: judge
        config:
          stage: reward
          model: {path: x}
          data: {train: ranks.jsonl}
          seed: 6
          cluster: {actor: {ranks: 2}}
        inputs:
          model.path: tune.policy
    rounds: 2
    repeat:
      - name: improve
        config:
          stage: ppo
          policy: {path: x}
          reward: {type: model, path: x}
          prompts: {train: prompts.jsonl}
        inputs:
          policy.path: [improve.policy, tune.policy]
          reward.path: judge.reward
          prompts.train: tune.answers
    """
)


@pytest.fixture
def pipeline(write: Write) -> Path:
    """A valid pipeline whose first stage has a file of its own."""
    write(SFT, "sft.yaml")
    return write(PIPELINE, "pipeline.yaml")


def test_pipeline_entries_are_complete(pipeline: Path) -> None:
    stage = load_config(pipeline)
    assert isinstance(stage, PipelineStage)
    tune, judge = (build(entry.config) for entry in stage.stages)
    assert (tune.name, tune.seed, tune.cluster.dtype, tune.cluster.actor.threads) == ("tune", 5, "bfloat16", 1)
    assert (judge.name, judge.seed, judge.cluster.dtype) == ("judge", 6, "bfloat16")
    assert (judge.cluster.actor.ranks, judge.cluster.actor.threads) == (2, 1)


def test_overrides_of_shared_keys_reach_every_stage(pipeline: Path) -> None:
    stage = load_config(pipeline, ["seed=9", "cluster.dtype=float32", "stages.judge.config.batch_size=3"])
    built = [build(entry.config) for entry in stage.stages]
    assert [(each.seed, each.cluster.dtype) for each in built] == [(9, "float32")] * 2
    assert built[1].batch_size == 3


def test_build_inserts_inputs(pipeline: Path) -> None:
    stage = load_config(pipeline)
    entry = stage.repeat[0]
    assert placeholders(entry)["prompts.train"] == "<tune.answers>"
    built = build(entry.config, {"policy.path": "/p", "reward.path": "/r", "prompts.train": ["/a", "/b"]})
    assert (built.policy.path, built.reward.path) == ("/p", "/r")
    assert [source.path for source in built.prompts.train] == ["/a", "/b"]
    assert entry.config["policy"] == {"path": "x"}


def test_a_typo_in_a_late_stage_is_found_first(pipeline: Path, write: Write) -> None:
    write(PIPELINE.replace("reward: {type: model, path: x}", "rewards: {type: model, path: x}"), "pipeline.yaml")
    text = refusal(pipeline)
    assert f"`rewards` is not a setting ({pipeline}, line 25); did you mean `reward`?" in text


def test_a_typo_in_a_stage_file_names_that_file(pipeline: Path, write: Write) -> None:
    child = write(SFT + "batchsize: 3\n", "sft.yaml")
    assert f"`batchsize` is not a setting ({child}, line 8)" in refusal(pipeline)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "model.path: tune.policy",
            "model.path: tun.policy",
            "`tun` is not a stage before `judge`; did you mean `tune`?",
        ),
        ("model.path: tune.policy", "model.path: improve.policy", "`improve` is not a stage before `judge`"),
        ("[improve.policy, tune.policy]", "improve.policy", "in the first round improve.policy does not exist yet"),
        ("model.path: tune.policy", "model.pth: tune.policy", "`model.pth` is not a setting"),
        ("name: judge", "name: tune", "Two stages of the pipeline are named `tune`"),
        ("config: sft.yaml", "config: sfd.yaml", "names neither a file beside that config"),
        ("stage: reward", "stage: rewards", "did you mean `reward`?"),
    ],
)
def test_wrong_pipelines(pipeline: Path, write: Write, old: str, new: str, message: str) -> None:
    assert message in refusal(write(PIPELINE.replace(old, new), "pipeline.yaml"))


def test_rounds_without_repeat(pipeline: Path, write: Write) -> None:
    text = PIPELINE[: PIPELINE.index("repeat:")]
    assert "`rounds`" in refusal(write(text, "pipeline.yaml"))


def test_schema_lets_sections_be_names() -> None:
    definitions = json_schema()["$defs"]
    model = definitions["SftStage"]["properties"]["model"]["anyOf"]
    assert model[0]["type"] == "string"
    assert "$ref" in model[1]
    assert definitions["StageEntry"]["properties"]["config"]["anyOf"][0]["type"] == "string"
    assert "micro-batch" in definitions["ClusterSettings"]["properties"]["train_tokens"]["description"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"gold": {"function": "a:b"}}, "`gold` is now called `gold_reward`"),
        ({"reward": {"function": {"function": "a:b"}}}, "add `type: function`"),
        ({"reward": {"path": "models/rm"}}, "add `type: model`"),
        ({"reward": {}}, "`reward.type` is missing"),
        ({"reward": {"type": "modle", "path": "x"}}, "did you mean `model`?"),
        ({"reward": {"type": "function", "function": "a:b", "timout": 3}}, "`reward.timout` is not a setting"),
        ({"reward": {"type": "function", "function": "a:b", "timeout": -3}}, "`reward.timeout` is -3"),
    ],
)
def test_reward_says_its_type(write: Write, ppo: dict[str, Any], change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config(write(ppo | change))
    assert sentence in str(refused.value)


def test_evaluation_names_its_prompts_rows(write: Write) -> None:
    evaluation = {"prompts": {"train": "held-out.jsonl"}, "gold_reward": {"type": "function", "function": "a:b"}}
    config = {"stage": "pipeline", "name": "all", "stages": [], "evaluation": evaluation}
    with pytest.raises(UserError, match=r"`evaluation.prompts.train` is now called `evaluation.prompts.rows`"):
        load_config(write(config))
