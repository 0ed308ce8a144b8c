"""Bad input on the real command line: exit code 2, one paragraph, no traceback; faults exit with 1, Ctrl-C with 130."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from quadriga.data.errors import Fault
from quadriga.launch.cli.app import main

Write = Callable[..., Path]


@pytest.fixture
def refusal(write: Write, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function that runs a config which must be refused before it starts, and returns the message on one line."""

    def run(config: Any, *overrides: str) -> str:
        path = config if isinstance(config, Path) else write(config)
        assert main(["run", str(path), *overrides]) == 2
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        assert printed.err.startswith("Error: ")
        assert "\n\n" not in printed.err.strip()
        return " ".join(printed.err.split())

    return run


Refusal = Callable[..., str]


def test_unknown_key(refusal: Refusal, write: Write, sft: dict[str, Any]) -> None:
    message = refusal(write(sft | {"total_step": 3}))
    assert "`total_step` is not a setting" in message
    assert "line 12" in message
    assert "did you mean `total_steps`?" in message


def test_missing_config(refusal: Refusal, tmp_path: Path) -> None:
    assert "There is no config file" in refusal(tmp_path / "none.yaml")


def test_missing_data_file(refusal: Refusal, sft: dict[str, Any]) -> None:
    assert "No file nowhere.jsonl is there." in refusal(sft, "data.train=nowhere.jsonl")


def test_path_that_is_not_a_model(refusal: Refusal, sft: dict[str, Any], tmp_path: Path) -> None:
    assert "is not a model folder: config.json is missing." in refusal(sft, f"model.path={tmp_path}")


def test_a_problem_of_two_roles_is_reported_once(refusal: Refusal, ppo: dict[str, Any], tmp_path: Path) -> None:
    message = refusal(ppo, f"policy.path={tmp_path}", f"critic.path={tmp_path}")
    assert message.count("is not a model folder") == 1


def test_model_without_weights(refusal: Refusal, sft: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert "has no .safetensors weights" in refusal(sft, f"model.path={tmp_path}")


def test_unknown_architecture(refusal: Refusal, sft: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "lama"}')
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert "is not a model that transformers knows" in refusal(sft, f"model.path={tmp_path}")


def test_empty_data_set(refusal: Refusal, sft: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    assert "empty.jsonl is empty" in refusal(sft, f"data.train={tmp_path / 'empty.jsonl'}")


def test_row_that_is_not_json(refusal: Refusal, sft: dict[str, Any], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", \n')
    message = refusal(sft, f"data.train={rows}")
    assert "rows.jsonl, line 2: not JSON" in message
    assert "on_bad_row: skip" in message


def test_prompt_longer_than_the_context(refusal: Refusal, ppo: dict[str, Any], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "why? " * 500}) + "\n")
    message = refusal(ppo, f"prompts.train={rows}")
    assert "rows.jsonl, line 1: prompt longer than the context" in message


def test_settings_longer_than_the_context(refusal: Refusal, ppo: dict[str, Any]) -> None:
    message = refusal(ppo, "sampling.max_tokens=33")
    assert "`prompts.max_tokens + sampling.max_tokens` allows sequences of 129 tokens" in message
    assert "is 128 tokens" in message


def test_head_size_that_vllm_does_not_serve(refusal: Refusal, ppo: dict[str, Any], odd_model: Path) -> None:
    message = refusal(ppo, f"policy.path={odd_model}")
    assert "heads have 8 elements (head_dim), and vLLM's CPU attention supports 32, 64" in message


def test_training_alone_does_not_need_vllm(odd_model: Path, sft: dict[str, Any], write: Write) -> None:
    from quadriga.launch.checks.stage import require_sound
    from quadriga.launch.config.load import load_config

    assert require_sound(load_config(write(sft), [f"model.path={odd_model}"])) == []


def test_more_ranks_than_the_machine_can_place(refusal: Refusal, sft: dict[str, Any]) -> None:
    assert "cluster.actor asks for 4096 processes" in refusal(sft, "cluster.actor.ranks=4096")


@pytest.mark.parametrize("name", ["no_such_module:score", "json:no_such_function"])
def test_reward_function_that_does_not_import(refusal: Refusal, ppo: dict[str, Any], name: str) -> None:
    assert f"The function {name} cannot be used: " in refusal(ppo, f"reward.function={name}")


def test_reward_model_that_is_a_policy(refusal: Refusal, ppo: dict[str, Any], model: Path) -> None:
    assert f"{model} has no trained reward head" in refusal(ppo | {"reward": {"type": "model", "path": str(model)}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["sampling.temperature=0"], "`sampling.temperature` is 0"),
        (["sampling.temperature=0.005"], "`sampling.temperature` is 0.005, and vLLM samples at 0.01 or above"),
        (["sampling.top_p=0.9"], "`sampling.top_p` is 0.9, which cuts the distribution: the trainer computes"),
        (["sampling.top_k=20"], "`sampling.top_k` is 20, which cuts the distribution: the trainer computes"),
        (["critic=null"], "The critic starts from the reward model"),
        (["policy=models/pocket"], "`policy.shape` has no weights"),
        (["cluster.device=cuda"], "torch finds no GPU here"),
    ],
)
def test_settings_that_contradict_each_other(
    refusal: Refusal, ppo: dict[str, Any], changes: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quadriga.launch.checks.stage.gpu_count", lambda: 0)
    assert message in refusal(ppo, *changes)


def test_a_pipeline_names_the_stage(refusal: Refusal, sft: dict[str, Any], ppo: dict[str, Any]) -> None:
    improve = {"name": "improve", "config": ppo, "inputs": {"policy.path": "tune.policy"}}
    stages = [{"name": "tune", "config": sft}, improve]
    message = refusal({"stage": "pipeline", "name": "all", "stages": stages}, "stages.improve.config.critic.path=/no")
    assert "Stage `improve`: /no is not a model folder" in message


def test_an_output_that_no_stage_makes(refusal: Refusal, sft: dict[str, Any], ppo: dict[str, Any]) -> None:
    improve = {"name": "improve", "config": ppo, "inputs": {"policy.path": "tune.polcy"}}
    message = refusal({"stage": "pipeline", "name": "all", "stages": [{"name": "tune", "config": sft}, improve]})
    assert "`tune.polcy` is not an output of tune; did you mean `policy`?" in message


def test_several_problems_are_one_paragraph(refusal: Refusal, sft: dict[str, Any]) -> None:
    message = refusal(sft, "cluster.actor.ranks=4096", "model.path=/no/model")
    assert message.startswith("Error: 2 problems: (1) ")
    assert " (2) " in message


def test_the_installed_command(write: Write, sft: dict[str, Any]) -> None:
    command = [str(Path(sys.executable).with_name("quadriga")), "run", str(write(sft)), "batch_size=none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: `batch_size` is 'none' (the command line)")
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(write: Write, sft: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(write(sft)), "batch_size=none", "--debug"]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert "Error: `batch_size`" in printed


def raising(error: BaseException) -> Callable[..., int]:
    """Return a function that raises `error`."""

    def run(*arguments: Any) -> int:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (Fault("critic 1 is gone", phase="update", process="critic 1"), 1, "Failed: update: critic 1 is gone"),
        (Fault("it broke"), 1, "Failed: it broke"),
        (KeyboardInterrupt(), 130, ""),
        (ValueError("odd [thing]"), 1, "ValueError: odd [thing] This is a bug in Quadriga"),
    ],
)
def test_how_runs_end(
    error: BaseException,
    code: int,
    message: str,
    write: Write,
    sft: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import quadriga.orchestrator.run

    monkeypatch.setattr(quadriga.orchestrator.run, "run", raising(error))
    assert main(["run", str(write(sft))]) == code
    text = " ".join(capsys.readouterr().err.split())
    assert message in text
    assert "Traceback" not in text


def test_exit_code_of_the_run_is_passed_on(write: Write, sft: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import quadriga.orchestrator.run

    monkeypatch.setattr(quadriga.orchestrator.run, "run", lambda stage, build, allowed: 130)
    assert main(["run", str(write(sft))]) == 130


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "quadriga run configs/assistant/pipeline.yaml" in " ".join(capsys.readouterr().out.split())
    assert main(["run", "--help"]) == 0
    assert "cluster=clusters/h100x8-8b" in capsys.readouterr().out


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert "SftStage" in json.loads(capsys.readouterr().out)["$defs"]


def test_data_shows_mask_and_template(write: Write, sft: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", str(write(sft)), "--rows", "1"]) == 0
    shown = capsys.readouterr().out
    assert "<bos><user>" in shown
    assert "'<eos>'" in shown
    assert "4 training rows read, 0 held out, 0 left out" in " ".join(shown.split())
    last = [line.split() for line in shown.splitlines() if "'<eos>'" in line][-1]
    assert last[1:] == ["2", "'<eos>'", "1"]
    first = next(line.split() for line in shown.splitlines() if "'<bos>'" in line)
    assert first == ["0", "1", "'<bos>'", "0"]


def test_export_copies_the_newest_model(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(model, tmp_path / "run/checkpoints/step-3/export/policy")
    target = tmp_path / "mine" / "assistant"
    assert main(["export", str(tmp_path / "run"), str(target)]) == 0
    assert {path.name for path in model.iterdir()} == {path.name for path in target.iterdir()}
    assert (target / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert main(["export", str(tmp_path / "run"), str(target)]) == 2
    assert "exists already" in " ".join(capsys.readouterr().err.split())
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "other"), "--model", "reward"]) == 2
    assert "holds no reward model" in " ".join(capsys.readouterr().err.split())


def test_export_refuses_damaged_weights(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "model"
    shutil.copytree(model, source)
    weights = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(weights[:-4])
    assert main(["export", str(source), str(tmp_path / "copy")]) == 2
    assert "is damaged" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "copy").exists()


def test_eval_passes_every_option_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    received: dict[str, Any] = {}

    def evaluate_run(target: str, against: str | None, **options: Any) -> dict[str, Any]:
        received.update(options, target=target, against=against)
        return {"win_rate": {"mean": 0.5}}

    monkeypatch.setattr("quadriga.orchestrator.evaluation.report.evaluate_run", evaluate_run)
    out = tmp_path / "numbers.json"
    arguments = ["eval", "a", "--against", "b", "--rows", "7", "--temperature", "0", "--samples", "2", "--seed", "3"]
    assert main([*arguments, "--to", str(out)]) == 0
    assert received == {
        "target": "a", "against": "b", "rows": 7, "temperature": 0.0, "samples_per_prompt": 2,
        "reward": None, "seed": 3,
    }  # fmt: skip
    assert json.loads(out.read_text()) == {"win_rate": {"mean": 0.5}}


@pytest.mark.parametrize("command", ["eval", "chat"])
def test_a_run_that_does_not_exist(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, str(tmp_path / "none")]) == 2
    assert "There is no folder" in " ".join(capsys.readouterr().err.split())


def test_a_config_with_a_launcher_is_not_run_here(
    sft: dict[str, Any], write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(write(sft | {"cluster": {"ssh": {"hosts": ["node-1"]}}}))]) == 2
    assert "use `quadriga launch`, or set cluster.ssh=null" in " ".join(capsys.readouterr().err.split())
