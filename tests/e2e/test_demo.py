"""The recipe end to end, cut short, through the command line; then every command that README and docs show."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quadriga.launch.cli.app import main
from quadriga.orchestrator.tracking.tracker import read_metrics

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]
SHORT = [
    "stages.pretrain.config.total_steps=30",
    "stages.pretrain.config.data.train.0.rows=1200",
    "stages.pretrain.config.heldout_every=null",
    "stages.sft.config.total_steps=30",
    "stages.sft.config.data.train.0.rows=600",
    "stages.sft.config.data.train.1.rows=100",
    "stages.sft.config.heldout_every=null",
    "stages.sft.config.stop_when_heldout_rises=false",
    "repeat.rank.config.prompts.train.0.rows=40",
    "repeat.reward.config.total_steps=6",
    "repeat.ppo.config.total_steps=3",
    "repeat.ppo.config.prompts_per_step=16",
    "repeat.ppo.config.prompts.train.0.rows=200",
    "evaluation.rows=24",
]
SHORTER_RUN = ["total_steps=1", "prompts_per_step=4", "prompts.train.0.rows=40"]
EXAMPLES = ROOT / "docs/examples.md"
"""The commands of this page are run in tests/examples, on the data that they need."""
ON_A_CLUSTER = ("submit", "jobs", "logs", "stop", "scale")
"""Commands that a cluster must answer; tests/integration/test_submit.py has one. Here they are only understood."""
WANDB = [sys.executable, "-m", "wandb"]
ON_HOSTS = ("hosts", "launch", "down")
"""Commands for hosts that are not here; tests/integration/test_cluster.py has some."""
MY_PPO = """
stage: ppo
name: helpful-8b
policy: {path: runs/assistant/round-0/sft/export/policy}
reward: {type: model, path: runs/assistant/round-1/reward/export/reward}
prompts: {train: [{builtin: assistant.prompts, rows: 40}], max_tokens: 256}
total_steps: 1
"""


@pytest.fixture(scope="module")
def workplace(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory that looks like the clone's root, with a finished pipeline in runs/assistant."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "configs").symlink_to(ROOT / "configs")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["run", "configs/assistant/pipeline.yaml", *SHORT]) == 0
        yield folder
    finally:
        os.chdir(before)


def test_summary_holds_what_the_table_shows(workplace: Path) -> None:
    """The keys, one row a policy, an interval around the win rate."""
    summary = json.loads((workplace / "runs/assistant/summary.json").read_text())
    assert [row["stage"] for row in summary["stages"]] == ["pretrain", "sft", "ppo"]
    for row in summary["stages"]:
        assert set(row) == {"stage", "truthful", "harmless", "helpful", "reward_score", "kl", "seconds"}
        assert all(0 <= row[part] <= 1 for part in ("truthful", "harmless", "helpful")) and row["seconds"] > 0
    assert abs(summary["stages"][1]["kl"]) < 1e-3  # of SFT from itself
    rate = summary["win_rate"]
    assert rate["low"] <= rate["mean"] <= rate["high"] and rate["n"] == 24


def test_engine_and_trainer_agreed_at_every_step(workplace: Path) -> None:
    """Below 1e-4 in every row, and each row knows its step."""
    rows = read_metrics(workplace / "runs/assistant/round-1/ppo/metrics.jsonl")
    assert [row["global_step"] for row in rows] == [1, 2, 3]
    assert all(row["rollout/logprob_diff_max"] < 1e-4 for row in rows)


def test_exports_are_the_pipelines(workplace: Path) -> None:
    """Policy and reward model load from the pipeline's own export folder, tokenizer and template included."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    export = workplace / "runs/assistant/export"
    AutoModelForCausalLM.from_pretrained(export / "policy")
    reward = AutoModelForSequenceClassification.from_pretrained(export / "reward")
    assert reward.config.num_labels == 1 and isinstance(reward.config.reward_shift, float)
    for name in ("policy", "reward"):
        tokenizer = AutoTokenizer.from_pretrained(export / name)
        assert tokenizer.chat_template and tokenizer.pad_token_id != tokenizer.eos_token_id


def test_running_again_skips_what_is_done(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No stage starts a process; the page at the end is printed again."""
    assert main(["run", "configs/assistant/pipeline.yaml", *SHORT]) == 0
    printed = capfd.readouterr().out
    assert printed.count("finished before, skipped") == 5
    assert "starting processes" not in printed
    for title in ("Stage by stage", "Side by side", "Where to look next"):
        assert title in printed


def documented_commands() -> list[str]:
    """The command lines in code blocks of README and docs, without comments."""
    lines: list[str] = []
    pages = {ROOT / "README.md", *(ROOT / "docs").glob("*.md")} - {EXAMPLES}
    for page in sorted(pages):
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            if language in ("", "bash", "sh"):
                lines += [line.split("#")[0].strip() for line in block.splitlines()]
    return sorted({line for line in lines if re.match(r"(quadriga|wandb|make|python -m) ", line)})


def without_key() -> dict[str, str]:
    """An environment in which W&B has no account."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return kept | {"HOME": os.devnull, "NETRC": os.devnull}


def test_every_documented_command_runs(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`make` targets exist (CI and the demo run them); the others run here, on the pipeline above."""
    makefile = (ROOT / "Makefile").read_text()
    (workplace / "my-ppo.yaml").write_text(MY_PPO)
    for command in documented_commands():
        words = shlex.split(command)
        if words[0] == "make":
            assert re.search(rf"^{re.escape(words[1])}:", makefile, re.MULTILINE), command
        elif words[0] == "quadriga" and words[1] in ON_A_CLUSTER:
            assert main(words[1:]) == 2, command
            assert "No Ray job server answers at http://head:8265" in " ".join(capfd.readouterr().err.split()), command
        elif words[0] == "quadriga" and words[1] in ON_HOSTS:
            without_hosts = words[1] == "down" or "--dry-run" in words
            assert main(words[1:]) == (0 if without_hosts else 2), command
            said = " ".join("".join(capfd.readouterr()).split())
            assert "ray.scripts.scripts start" in said if "--dry-run" in words else "node-1: " in said, (command, said)
        elif words[0] == "quadriga":
            with monkeypatch.context() as patch:
                questions = workplace / "questions.txt"
                questions.write_text("What is the capital of Talvos?\n")
                with questions.open() as stdin:
                    patch.setattr("sys.stdin", stdin)
                    more = SHORTER_RUN if words[1] == "run" else ["--rows", "8"] if words[1] == "eval" else []
                    assert main([*words[1:], *more]) == 0, (command, capfd.readouterr().err)
        else:
            assert command.startswith("wandb sync "), command
            offline = next((workplace / "runs/assistant").glob("round-*/*/wandb/offline-run-*"))
            said = subprocess.run([*WANDB, "sync", str(offline)], env=without_key(), capture_output=True, text=True)
            # What an account and a server would take from here: the run is found, and a key is asked for.
            assert "Syncing 1 run" in said.stdout + said.stderr and "API key" in said.stdout + said.stderr, said
