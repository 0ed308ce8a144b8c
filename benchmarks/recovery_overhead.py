"""What recovery costs while nothing goes wrong: checkpoints every ten steps against a PPO run without any.

    python benchmarks/recovery_overhead.py [STEPS] [RUNS]

Runs the pocket PPO of `configs/assistant/ppo.yaml`'s shape, with and without checkpoints in turn, and prints the time
of a step with its commit (metrics, samples, and the checkpoint when one is due) as a ratio, from medians over runs.
The other parts of the machinery (signs of life, the watchdog, events) run in both.
"""

import json
import platform
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quadriga.actors.device import cores
from quadriga.actors.export import save_fresh_model
from quadriga.data.datasets import document_texts
from quadriga.data.settings import DataSettings
from quadriga.data.tokenizer import train_tokenizer
from quadriga.launch.config import PRESETS, build, load_config
from quadriga.orchestrator.run import run
from quadriga.orchestrator.tracking import read_metrics


def ppo(folder: Path, steps: int, every: int | None) -> dict[str, Any]:
    """The recipe's PPO stage on fresh weights, with gold as its reward."""
    recipe = load_config(PRESETS / "assistant" / "pipeline.yaml")
    config = next(dict(entry.config) for entry in recipe.repeat if entry.name == "ppo")
    config |= {"run_dir": str(folder / "run"), "total_steps": steps, "checkpoint": {"every_steps": every}}
    config |= {"reward": {"function": config["gold"]}, "critic": {"path": str(folder / "model")}}
    config |= {"policy": {"path": str(folder / "model")}, "tracking": {"wandb": False}}
    return config


def model(folder: Path) -> None:
    """The recipe's model, untrained: its speed is that of a trained one."""
    recipe = load_config(PRESETS / "assistant" / "pipeline.yaml")
    pretrain = build(next(dict(entry.config) for entry in recipe.stages if entry.name == "pretrain"))
    texts = document_texts(DataSettings.model_validate(pretrain.data), 0)
    tokenizer = train_tokenizer(texts, pretrain.tokenizer.vocab_size)
    save_fresh_model(pretrain.model.shape, tokenizer, 0, folder)


def main(steps: int, runs: int) -> None:
    """Print the table."""
    seconds: dict[str, list[float]] = {"without": [], "every 10": []}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(runs):
            for name, every in (("without", None), ("every 10", 10)):
                folder = Path(scratch) / f"{name}-{number}"
                model(folder / "model")
                settings = build(ppo(folder, steps, every))
                assert run(settings) == 0
                rows = read_metrics(Path(settings.run_dir) / "metrics.jsonl")[2:]  # the first ones warm up
                # A row holds the commit of the step before it.
                total = sum(row["timing_s/step"] + row["timing_s/commit"] for row in rows)
                seconds[name].append(total / len(rows))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["every 10"] / medians["without"]
    print(json.dumps({"seconds_a_step": seconds, "ratio": round(ratio, 4)}))
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "deepspeed"))
    print(f"{platform.machine()}, {cores()} cores; {packages}; {steps} steps, {runs} runs each, in turn")
    print(f"checkpoints every 10 steps: {100 * (ratio - 1):+.1f} % of the step time")


if __name__ == "__main__":
    main(*(int(word) for word in (sys.argv[1:] + ["30", "3"][len(sys.argv) - 1 :])))
