"""Stages of a few steps on a few short rows: every kind of training run, in seconds."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

THINGS = ["sun", "moon", "star", "tree", "river", "stone", "bird", "fish", "wind", "rain"]
COLOURS = ["red", "blue", "green", "old"]
KEY = "feedbeef" * 5
"""A W&B key that must turn up nowhere."""
STEPS = 4
"""Of every training stage here."""
CLUSTER = {"rollout": {"kv_cache_bytes": 32 << 20}, "deadlines": {"start": 240, "call": 120, "generate": 120}}


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    """A JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def documents(path: Path) -> str:
    """Forty sentences."""
    return write_rows(path, ({"text": f"The {c} {t} is {c}. It is a {t}."} for t in THINGS for c in COLOURS))


def demonstrations(path: Path) -> str:
    """Forty questions with their answers."""
    rows = ({"prompt": f"What is the {c} {t}?", "completion": f"It is {c}."} for t in THINGS for c in COLOURS)
    return write_rows(path, rows)


def rankings(path: Path) -> str:
    """Ten questions with four ranked answers each, two of them tied."""
    rows = []
    for thing in THINGS:
        answers = [{"id": c, "text": f"The {thing} is {c}."} for c in COLOURS]
        ranking = [["red"], ["blue", "green"], ["old"]]
        question = [{"role": "user", "content": f"What is {thing}?"}]
        rows.append({"id": thing, "messages": question, "responses": answers, "ranking": ranking})
    return write_rows(path, rows)


def prompts(path: Path) -> str:
    """Twenty questions."""
    return write_rows(path, ({"prompt": f"What is the {c} {t}?"} for t in THINGS for c in COLOURS[:2]))


def stage(kind: str, folder: Path, model: Path, reward: Path | None = None) -> dict[str, Any]:
    """The config of a stage of this kind that runs in folder/run, its rows beside it.

    model: what it starts from. reward: the reward model of PPO.
    """
    common: dict[str, Any] = {
        "stage": kind,
        "name": kind,
        "run_dir": str(folder / "run"),
        "cluster": CLUSTER,
    }
    optimizer = {"lr": 1e-3}
    if kind == "pretrain":
        shape = json.loads((model / "config.json").read_text())
        kept = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        return common | {
            "model": {"shape": {key: shape[key] for key in kept} | {"max_position_embeddings": 128}},
            "tokenizer": {"vocab_size": 300},
            "data": {"train": documents(folder / "rows.jsonl"), "max_tokens": 64, "heldout_fraction": 0.2},
            "batch_size": 4,
            "total_steps": STEPS,
            "optimizer": optimizer,
            "heldout_every": 2,
        }
    if kind == "sft":
        data = {"train": demonstrations(folder / "rows.jsonl"), "max_tokens": 64, "heldout_fraction": 0.2}
        more = {"batch_size": 8, "total_steps": STEPS, "optimizer": optimizer, "heldout_every": 2}
        return common | {"model": {"path": str(model)}, "data": data} | more
    if kind == "reward":
        return common | {
            "model": {"path": str(model)},
            "data": {"train": rankings(folder / "rows.jsonl"), "max_tokens": 64, "heldout_fraction": 0.2},
            "demonstrations": {"train": demonstrations(folder / "demonstrations.jsonl"), "max_tokens": 64},
            "batch_size": 4,
            "total_steps": STEPS,
            "optimizer": optimizer,
            "heldout_every": 2,
        }
    asked = {"train": prompts(folder / "rows.jsonl"), "max_tokens": 32}
    if kind == "rank":
        annotator = {"type": "function", "function": "helpers.reward_functions:vowels"}
        more = {"answers_per_prompt": [4, 5], "sampling": {"max_tokens": 8}, "annotator": annotator}
        return common | {"policy": {"path": str(model)}, "prompts": asked} | more
    return common | {
        "policy": {"path": str(model)},
        "reward": {"type": "model", "path": str(reward)},
        "prompts": asked,
        "prompts_per_step": 8,
        "samples_per_prompt": 2,
        "sampling": {"max_tokens": 12},
        "algorithm": {"minibatch_size": 8, "epochs": 2},
        "total_steps": STEPS,
        "optimizer": {"lr": 3e-4, "schedule": "constant"},
        "critic_optimizer": optimizer,
        "tracking": {"samples": 1000},
    }


def chaos_ppo(folder: Path, model: Path, reward: Path, faults: dict[str, Any]) -> dict[str, Any]:
    """PPO on two policy ranks and two rollout workers, twelve steps, a checkpoint every three, with faults."""
    config = stage("ppo", folder, model, reward)
    cluster = CLUSTER | {"actor": {"ranks": 2}, "rollout": CLUSTER["rollout"] | {"workers": 2}}
    return config | {
        "cluster": cluster | {"deadlines": CLUSTER["deadlines"] | {"heartbeat": 8}},
        "total_steps": 12,
        "checkpoint": {"every_steps": 3, "keep": 2},
        "faults": faults,
        "tracking": {"samples": 1000, "wandb": False},
    }


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every exported weight file below a folder."""
    files = sorted(folder.rglob("*.safetensors"))
    assert files, f"{folder} holds no weights"
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def repeatable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics rows without what depends on the clock or the machine."""
    clocked = ("time", "timing_s/", "perf/", "system/")
    return [{key: value for key, value in row.items() if not key.startswith(clocked)} for row in rows]
