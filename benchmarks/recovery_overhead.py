"""What recovery costs while nothing goes wrong: a PPO run with a checkpoint every ten steps, and where its time goes.

    python benchmarks/recovery_overhead.py [STEPS]

Runs the pocket PPO of `configs/assistant/ppo.yaml`'s shape on fresh weights and prints, of one run, what is spent after
the steps (metrics, samples, and the checkpoint when one is due) as a share of what is spent in them. Signs of life have
a thread of their own and the watchdog another; what they take is in the steps.
"""

import platform
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quadriga.actors.model.export import save_fresh_model
from quadriga.actors.runtime.device import cores
from quadriga.data.loading.datasets import document_texts
from quadriga.data.settings import DataSettings
from quadriga.data.tokens.tokenizer import train_tokenizer
from quadriga.launch.config.load import PRESETS, build, load_config
from quadriga.orchestrator.run import run
from quadriga.orchestrator.tracking.tracker import read_metrics

EVERY = 10


def ppo(folder: Path, steps: int, every: int | None) -> dict[str, Any]:
    """The recipe's PPO stage on fresh weights, with gold as its reward."""
    recipe = load_config(PRESETS / "assistant" / "pipeline.yaml")
    config = next(dict(entry.config) for entry in recipe.repeat if entry.name == "ppo")
    config |= {"run_dir": str(folder / "run"), "total_steps": steps, "checkpoint": {"every_steps": every}}
    config |= {"reward": config["gold_reward"], "critic": {"path": str(folder / "model")}}
    own = {"path": str(folder / "model")}
    config |= {"policy": own, "reference": own, "tracking": {"wandb": False}}
    return config


def model(folder: Path) -> None:
    """The recipe's model, untrained: its speed is that of a trained one."""
    recipe = load_config(PRESETS / "assistant" / "pipeline.yaml")
    pretrain = build(next(dict(entry.config) for entry in recipe.stages if entry.name == "pretrain"))
    texts = document_texts(DataSettings.model_validate(pretrain.data), 0)
    tokenizer = train_tokenizer(texts, pretrain.tokenizer.vocab_size)
    save_fresh_model(pretrain.model.shape, tokenizer, 0, folder)


def main(steps: int) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model(folder / "model")
        settings = build(ppo(folder, steps, EVERY))
        assert run(settings) == 0
        rows = read_metrics(Path(settings.run_dir) / "metrics.jsonl")[2:]  # the first ones warm up
    # A row holds the commit of the step before it.
    saved = [row["timing_s/commit"] for row in rows if row["global_step"] % EVERY == 1]
    others = [row["timing_s/commit"] for row in rows if row["global_step"] % EVERY != 1]
    step = statistics.median(row["timing_s/step"] for row in rows)
    commit = statistics.median(others)
    checkpoint = statistics.median(saved) - commit
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "deepspeed"))
    print(f"{platform.machine()}, {cores()} cores; {packages}; {len(rows)} steps, {len(saved)} checkpoints, medians")
    print(f"a step {step:.3f} s; metrics and samples {commit:.3f} s; a checkpoint {checkpoint:.3f} s")
    print(f"checkpoints every {EVERY} steps: {100 * checkpoint / EVERY / step:+.2f} % of the step time")
    print(f"with metrics and samples: {100 * (commit + checkpoint / EVERY) / step:+.2f} %")


if __name__ == "__main__":
    main(*(int(word) for word in (sys.argv[1:] or ["42"])))
