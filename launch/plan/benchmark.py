"""Benchmark of a machine: small models in real hosts and engines, timed call by call."""

import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from quadriga.actors.model.batch import Element, LossPart
from quadriga.actors.model.heads import ModelSpec
from quadriga.actors.runtime.device import cores
from quadriga.actors.settings import ClusterSettings, OptimizerSettings, Role, SamplingSettings
from quadriga.data.records import Prompt
from quadriga.kernels.losses.likelihood import NegativeLogLikelihood
from quadriga.launch.plan import calibration
from quadriga.launch.plan.calibration import Calibration, Call, Generation, Rows, Transfer, fitted
from quadriga.launch.plan.model_shape import ModelShape, shape_of
from quadriga.launch.plan.workload import micro_batches
from quadriga.orchestrator.cluster.processes import ModelUse, Processes, RolloutPlan, connected, processes
from quadriga.orchestrator.rollout.pool import GroupWeights, RolloutPool

SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
MODELS = ((2, 64, 128, 2, 512), (6, 128, 384, 4, 1024), (2, 320, 896, 5, 4096))  # small, deep, wide
BUDGET = 1024
# Lengths of the sequences in each measured call; the last takes two micro-batches of `BUDGET` tokens.
LENGTHS: tuple[list[int], ...] = ([16] * 8, [64] * 8, list(range(9, 57, 3)), [64] * 16, [64] * 32)
PROMPT = 16  # tokens
ANSWERS = ((4, 16), (32, 16), (32, 48))  # (requests, tokens of each answer) of each measured batch
# All calls of a model are measured one after the other, this many times: a busy moment then spoils one time of each.
ROUNDS = 3
KINDS = ("forward", "update")
Measured = defaultdict[tuple[str, int], Rows]  # (kind of work, threads) -> what was measured of it


def calibrate(device: str, dtype: str, report: Callable[[str], None] = lambda text: None) -> Calibration:
    """Measure this machine in its own Ray, hosts and engines: about a minute and a half on two cores. report: called
    with what is being measured."""
    measured, slow, most = Measured(list), list[float](), cores() if device == "cpu" else 1
    # Hosts of one thread, of all threads, of two ranks, and one to compute beside the first.
    one: dict[str, int] = {"threads": 1}
    hosts = {"actor": one, "critic": {"threads": most}, "reference": one, "reward": one | {"ranks": min(2, most)}}
    budgets = {"train_tokens": BUDGET, "forward_tokens": BUDGET, "rollout": {"kv_cache_bytes": 64 << 20}}
    common = {"device": device, "dtype": dtype, "placement": "colocate"}
    cluster = ClusterSettings.model_validate(common | hosts | budgets)
    with TemporaryDirectory(prefix="quadriga-") as folder, connected(cluster):
        for sizes in MODELS:
            report(f"a model of {sizes[0]} layers, {sizes[1]} wide")
            fields = dict(zip(SIZES, sizes, strict=True)) | {"max_position_embeddings": 2 * BUDGET}
            config = AutoConfig.for_model("llama", tie_word_embeddings=True, **fields)
            path = f"{folder}/{sizes[0]}x{sizes[1]}"
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(path)
            trained: list[Role] = ["actor", "critic", "reward"] if device == "cpu" else ["actor"]
            uses = [ModelUse(role, ModelSpec(path, "logprobs"), OptimizerSettings()) for role in trained]
            uses += [ModelUse("reference", ModelSpec(path, "logprobs"))] if device == "cpu" else []
            with processes(cluster, uses, RolloutPlan(path, 2 * BUDGET, load=False), folder) as running:
                bench = _Bench(running, shape_of(config), 2 if dtype == "bfloat16" else 4)
                bench.measure(measured)
                slow += [bench.slowdown() for _ in range(ROUNDS)] if device == "cpu" else []
    name, versions = calibration.machine(device), calibration.versions()
    date = datetime.now(UTC).isoformat(timespec="seconds")
    calls = {count: {kind: fitted(measured[kind, count]) for kind in KINDS} for count in sorted({1, most})}
    engine, transfer = fitted(measured["generate", 1]), fitted(measured["transfer", 1])
    return Calibration(device, dtype, name, versions, date, calls, engine, transfer, max(1.0, median(slow or [1.0])))


class _Bench:
    """One model in all the processes that are measured."""

    def __init__(self, running: Processes, shape: ModelShape, width: int):
        self.running, self.shape, self.width = running, shape, width
        self.pool = RolloutPool(running.fleet, (), lambda ids: "", GroupWeights(running))
        self.version = 0  # of the weights that the engine holds

    def measure(self, measured: Measured) -> None:
        """Add what every kind of work takes, the median of the rounds."""
        timed: list[tuple[Rows, list[float], Callable[[], None]]] = []
        for group in self.running.groups.values():
            spec, world = group.specs[0], group.world
            for kind in KINDS if spec.optimizer else KINDS[:1]:
                first = partial(self.call, spec.role, kind, LENGTHS[0])
                first()  # compiles, traces and checks
                # The first call after one of the other kind records DeepSpeed's trace anew, and is not counted.
                timed.append(([], [], first))
                for lengths in () if not spec.optimizer else LENGTHS if world == 1 else LENGTHS[1:4:2]:
                    micro = micro_batches([[length] for length in lengths], world, BUDGET)
                    work = Call(self.shape, "logprobs", micro, world, self.width, kind == "update")
                    run = partial(self.call, spec.role, kind, lengths)
                    timed.append((measured[kind, spec.threads], work.features, run))
        self.sync()
        self.generate(4, 4)
        for requests, answer in ANSWERS:
            features = Generation(self.shape, [PROMPT] * requests, answer, requests, self.width).features
            timed.append((measured["generate", 1], features, partial(self.generate, requests, answer)))
        timed.append((measured["transfer", 1], Transfer(self.shape, self.width).features, self.sync))
        rounds = [[_seconds(run) for _, _, run in timed] for _ in range(ROUNDS)]
        for (rows, features, _), seconds in zip(timed, zip(*rounds, strict=True), strict=True):
            rows.append((features, median(seconds)))

    def call(self, role: Role, kind: str, lengths: list[int]) -> None:
        group, sequences = self.running.groups[role], _sequences(lengths)
        if kind == "forward":
            group.forward_logprobs(sequences, 1.0, "calibrate").result()
        else:
            elements = [Element([s], tokens={"weights": [np.ones(len(s), np.float32)]}) for s in sequences]
            part = LossPart(NegativeLogLikelihood(), elements, float(sum(lengths)))
            group.update([part], 1e-6).result()

    def slowdown(self) -> float:
        """Time the longest forward pass in two processes of one thread at the same time, over one alone."""

        def read(*roles: Role) -> None:
            groups, sequences = [self.running.groups[role] for role in roles], _sequences(LENGTHS[-1])
            for each in [group.forward_logprobs(sequences, 1.0, "calibrate") for group in groups]:
                each.result()

        return _seconds(partial(read, "actor", "reference")) / _seconds(partial(read, "actor"))

    def sync(self) -> None:
        self.version += 1
        self.pool.sync(self.version)

    def generate(self, requests: int, answer: int) -> None:
        prompts = [Prompt(str(i), [], ids) for i, ids in enumerate(_sequences([PROMPT] * requests))]
        self.pool.generate(prompts, 1, SamplingSettings(max_tokens=answer), 0, self.version)


def _sequences(lengths: list[int]) -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [generator.integers(3, 500, length).tolist() for length in lengths]


def _seconds(run: Callable[[], None]) -> float:
    began = time.monotonic()
    run()
    return time.monotonic() - began
