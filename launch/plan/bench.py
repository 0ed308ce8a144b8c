"""The bench on which a machine is measured: small models in real hosts and engines, timed call by call."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from quadriga.actors.model.group import Element
from quadriga.actors.model.heads import ModelSpec
from quadriga.actors.runtime.device import cores
from quadriga.actors.settings import ClusterSettings, OptimizerSettings, Role, SamplingSettings
from quadriga.data.records import Prompt
from quadriga.launch.plan.calibration import (
    KINDS,
    Calibration,
    Kind,
    Rows,
    call_features,
    fitted,
    generation_features,
    machine,
    sync_features,
    versions,
)
from quadriga.launch.plan.memory import element_size
from quadriga.launch.plan.seconds import Call, Generation
from quadriga.launch.plan.shapes import ModelShape, shape_of
from quadriga.launch.plan.work import micro_batches
from quadriga.orchestrator.cluster.processes import ModelUse, Processes, RolloutPlan, connected, processes
from quadriga.orchestrator.rollout.pool import RolloutPool

MODELS = ((2, 64, 128, 2, 512), (6, 128, 384, 4, 1024), (2, 320, 896, 5, 4096))
"""Layers, width, width of the MLP, heads and vocabulary of the Llamas that are measured: small, deep, wide."""

BUDGET = 1024
LENGTHS: tuple[list[int], ...] = ([16] * 8, [64] * 8, list(range(9, 57, 3)), [64] * 16, [64] * 32)
"""Lengths of the sequences in each measured call; the last takes two micro-batches of `BUDGET` tokens."""

ANSWERS = ((4, 16), (32, 16), (32, 48))
"""(requests, tokens of each answer) of each measured batch; prompts have `PROMPT` tokens."""
PROMPT = 16

ROUNDS = 3
"""All calls of a model are measured one after the other, so many times: a busy moment then spoils one time of each."""


def calibrate(device: str, dtype: str, say: Callable[[str], None] = lambda text: None) -> Calibration:
    """Measure this machine: about a minute and a half on two cores. Starts Ray, hosts and engines, and ends them.

    say: told what is being measured.
    """
    numbers = sorted({1, cores()}) if device == "cpu" else [1]
    calls: dict[int, dict[Kind, Rows]] = {count: {kind: [] for kind in KINDS} for count in numbers}
    drawn, sent, slow = Rows(), Rows(), list[float]()
    cluster = _cluster(device, dtype, numbers[-1])
    with tempfile.TemporaryDirectory(prefix="quadriga-") as folder, connected(cluster):
        for sizes in MODELS:
            say(f"a model of {sizes[0]} layers, {sizes[1]} wide")
            shape, path = _fresh(sizes, Path(folder))
            with _bench(shape, path, cluster, folder) as bench:
                bench.measure(calls, drawn, sent)
                slow += [bench.slowdown() for _ in range(ROUNDS)] if device == "cpu" else [1.0]
    return Calibration(
        device=device,
        dtype=dtype,
        machine=machine(device),
        versions=versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        calls={count: {kind: fitted(rows) for kind, rows in kinds.items()} for count, kinds in calls.items()},
        generate=fitted(drawn),
        transfer=fitted(sent),
        slowdown=max(1.0, median(slow)),
    )


@dataclass
class _Bench:
    """One model in all the processes that are measured. version: of the weights that the engine holds."""

    running: Processes
    shape: ModelShape
    width: int
    pool: RolloutPool
    version: int = 0

    def measure(self, calls: dict[int, dict[Kind, Rows]], drawn: Rows, sent: Rows) -> None:
        """Add what every call takes, the median of the rounds. calls: threads -> kind -> rows."""
        timed: list[tuple[Rows, list[float], Callable[[], None]]] = []
        for group in self.running.groups.values():
            spec = group.specs[0]
            lengths_of_calls = LENGTHS if group.world == 1 else LENGTHS[1:4:2]
            for kind in KINDS if spec.optimizer is not None else ():
                # The first call after one of the other kind records DeepSpeed's trace anew, and is not counted.
                timed.append(([], [], partial(self.call, spec.role, kind, LENGTHS[0])))
                for lengths in lengths_of_calls:
                    features = self.features(spec.role, kind, lengths)
                    run = partial(self.call, spec.role, kind, lengths)
                    timed.append((calls[spec.threads][kind], features, run))
        timed += [(drawn, self.drawing(*answers), partial(self.generate, *answers)) for answers in ANSWERS]
        timed.append((sent, sync_features(self.shape, self.width), self.sync))
        rounds = [[_seconds(run) for _, _, run in timed] for _ in range(ROUNDS)]
        for (rows, features, _), seconds in zip(timed, zip(*rounds, strict=True), strict=True):
            rows.append((features, median(seconds)))

    def features(self, role: Role, kind: Kind, lengths: list[int]) -> list[float]:
        """Of a call over sequences of these lengths."""
        ranks = self.running.groups[role].world
        micro = micro_batches([[length] for length in lengths], ranks, BUDGET)
        return call_features(Call(self.shape, "logprobs", micro, ranks, self.width, kind == "update"))

    def call(self, role: Role, kind: Kind, lengths: list[int]) -> None:
        """A forward pass or an update over sequences of these lengths."""
        from quadriga.kernels.losses import LOSSES  # imports torch

        group, sequences = self.running.groups[role], _sequences(lengths)
        if kind == "forward":
            group.forward_logprobs(sequences, 1.0, "calibrate").result()
        else:
            elements = [Element([s], tokens={"mask": [np.ones(len(s), np.float32)]}) for s in sequences]
            group.update(elements, LOSSES["nll"](), float(sum(lengths)), 1e-6).result()

    def slowdown(self) -> float:
        """The longest forward pass in two processes of one thread at the same time, over one alone."""
        groups = [self.running.groups[role] for role in ("actor", "reference")]

        def both() -> None:
            for each in [group.forward_logprobs(_sequences(LENGTHS[-1]), 1.0, "calibrate") for group in groups]:
                each.result()

        return _seconds(both) / _seconds(lambda: self.call("actor", "forward", LENGTHS[-1]))

    def sync(self) -> None:
        """The actor's weights to the engine."""
        self.version += 1
        send = self.running.groups["actor"].send_weights
        self.pool.sync(self.version, lambda workers: send(self.version, workers).result()[1])

    def drawing(self, requests: int, answer: int) -> list[float]:
        """Features of `generate`."""
        return generation_features(Generation(self.shape, [PROMPT] * requests, answer, requests, self.width))

    def generate(self, requests: int, answer: int) -> None:
        """So many answers, all of this length."""
        prompts = [Prompt(str(i), [], ids) for i, ids in enumerate(_sequences([PROMPT] * requests))]
        self.pool.generate(prompts, 1, SamplingSettings(max_tokens=answer), 0, self.version)


@contextmanager
def _bench(shape: ModelShape, path: str, cluster: ClusterSettings, logs: str) -> Iterator[_Bench]:
    """A bench whose processes are warm, and end with the block."""
    spec, optimizer = ModelSpec(path, "logprobs"), OptimizerSettings()
    uses = [ModelUse("actor", spec, optimizer)]
    if cluster.device == "cpu":
        uses += [ModelUse("critic", spec, optimizer), ModelUse("reward", spec, optimizer), ModelUse("reference", spec)]
    with processes(cluster, uses, RolloutPlan(path, 2 * BUDGET, load=False), logs) as running:
        bench = _Bench(running, shape, element_size(cluster), RolloutPool(running.fleet, (), lambda ids: ""))
        for use in uses:  # first calls compile, trace and check
            for kind in KINDS if use.optimizer is not None else KINDS[:1]:
                bench.call(use.role, kind, LENGTHS[0])
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


def _fresh(sizes: tuple[int, int, int, int, int], folder: Path) -> tuple[ModelShape, str]:
    """A saved Llama with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    fields = dict(zip(names, sizes, strict=True)) | {"max_position_embeddings": 2 * BUDGET}
    config = AutoConfig.for_model("llama", tie_word_embeddings=True, **fields)
    path = str(folder / f"{sizes[0]}x{sizes[1]}")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return shape_of(config), path


def _sequences(lengths: list[int]) -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [generator.integers(3, 500, length).tolist() for length in lengths]


def _seconds(run: Callable[[], None]) -> float:
    began = time.monotonic()
    run()
    return time.monotonic() - began
