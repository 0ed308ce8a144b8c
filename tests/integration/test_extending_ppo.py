"""The recipes of docs/extending.md for PPO: estimator, reward and loss part, from files outside the tree."""

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from helpers.recipes import write_recipes
from helpers.small_stages import stage

from quadriga.data.rundir import RunDir
from quadriga.launch.cli.app import main
from quadriga.orchestrator.tracking.tracker import read_metrics

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def run(ray_cluster: None, made_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """PPO of two steps with everything of the user's, started in the folder of the files."""
    folder = tmp_path_factory.mktemp("extending")
    write_recipes(folder, "centred.py", "brevity.py", "anchor.py", "anchor_loss.py")
    raw: dict[str, Any] = stage("ppo", folder, made_model)
    raw |= {"reward": {"type": "brevity:Brevity", "per_character": 0.5}, "total_steps": 2}
    raw["algorithm"] |= {
        "estimator": {"type": "centred:Centred", "scale": 2.0},
        "parts": [{"type": "anchor:Anchor", "coefficient": 0.1, "width": 2.0}],
        "kl": {"coefficient": 0.0},
        "missing_eos_penalty": 0.0,
        "reward_clip": None,
    }
    del raw["critic_optimizer"]
    (folder / "ppo.yaml").write_text(yaml.safe_dump(raw))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["doctor", "ppo.yaml"]) == 0
        assert main(["run", "ppo.yaml"]) == 0
    return RunDir(raw["run_dir"])


def test_the_reward_is_the_user_s(run: RunDir) -> None:
    rows = [row for file in run.samples_dir.glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    assert len(rows) == 32
    assert {row["reward_version"] for row in rows} == {"brevity"}
    for row in rows:
        assert row["reward"] == pytest.approx(-0.5 * len(row["response"]))


def test_the_estimator_is_the_user_s_and_needs_no_critic(run: RunDir) -> None:
    """Its advantages are centred scores times 2, on each token: their deviation over tokens is that of the rows."""
    processes = run.read_run()["processes"]
    assert {name.split()[0] for name in processes} == {"actor", "reference", "rollout"}
    for row in read_metrics(run.metrics_path):
        assert row["actor/advantage_std"] > 0
        assert not any(key.startswith("critic/") for key in row)


def test_the_loss_part_ran_in_the_model_worker(run: RunDir) -> None:
    """Old and new log-probs are equal in the first optimizer step and differ in the later ones of a step."""
    for row in read_metrics(run.metrics_path):
        assert row["actor/anchor_loss"] > 0
        # With x = new - old: (x / 2)^2 against e^x - 1 - x, which is x^2 / 2 times a factor between e^-|x| and e^|x|.
        factor = math.exp(row["actor/log_ratio_max"])
        assert 1 / factor <= row["actor/anchor_loss"] / (row["actor/approx_kl"] / 2) <= factor


def test_the_config_that_is_kept_loads_again(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.path.parent)
    kept = yaml.safe_load(run.config_path.read_text())
    assert kept["algorithm"]["estimator"] == {"type": "centred:Centred", "scale": 2.0}
    assert main(["run", str(run.config_path)]) == 0, "a finished run with the same settings is left as it is"


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("algorithm.estimator.type", "centred:Nothing", "the module centred has no `Nothing`"),
        ("algorithm.estimator.scale", "much", "scale: Input should be a valid number"),
        ("reward.type", "no_such_file:Brevity", "`no_such_file:Brevity` cannot be imported"),
        ("algorithm.estimator.type", "grop", "did you mean `grpo`?"),
    ],
)
def test_errors_name_the_key_and_the_class(
    run: RunDir,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    key: str,
    value: str,
    sentence: str,
) -> None:
    monkeypatch.chdir(run.path.parent)
    assert main(["doctor", "ppo.yaml", f"{key}={value}"]) != 0
    message = " ".join("".join(capsys.readouterr()).split())
    assert sentence in message
    assert key.rpartition(".")[0] in message
