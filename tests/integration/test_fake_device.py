"""How processes are started on GPUs, seen from inside them, with GPUs that only Ray believes in."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.fake_device import GPU_BYTES
from helpers.small_stages import stage

from quadriga.launch.config.load import build
from quadriga.launch.plan.devices import Layout, layout, placed
from quadriga.launch.plan.workload import PlannedStage, planned_stages

pytestmark = pytest.mark.integration

SHARED = {
    "device": "cuda",
    "placement": [["actor", "rollout"], ["critic"], ["reference", "reward"]],
    "actor": {"ranks": 2, "offload": "optimizer"},
    "rollout": {"workers": 2},
}
"""Rank i of the actor shares a GPU with engine i; the critic has one of its own."""
PARALLEL = {"device": "cuda", "placement": "separate", "rollout": {"tensor_parallel": 2}}
"""An engine on two GPUs."""

Reports = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def started(made_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Reports]:
    """Process name -> what it found, on SHARED and on PARALLEL. The driver's environment is that of a CPU run."""
    folder = tmp_path_factory.mktemp("fake")
    runs = [
        {"cluster": SHARED, "roles": ["actor", "critic", "reference", "reward"]},
        {"cluster": PARALLEL, "roles": []},
    ]
    asked = {"model": str(made_model), "gpus": 4, "logs": str(folder), "runs": runs}
    wrong = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "7"}
    done = subprocess.run(
        [sys.executable, "-c", "from helpers.fake_device import main; main()"],
        input=json.dumps(asked),
        env=os.environ | wrong | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answers: list[Reports] = json.loads(done.stdout.splitlines()[-1])
    return answers


def plan(cluster: dict[str, Any], kind: str, folder: Path, *models: Path) -> tuple[PlannedStage, Layout]:
    """What `quadriga plan` says of a stage on this cluster."""
    (planned,) = planned_stages(build(stage(kind, folder, *models) | {"cluster": cluster}))
    return planned, layout(planned)


def test_every_process_computes_on_its_gpu(
    started: list[Reports], made_model: Path, made_reward: Path, tmp_path: Path
) -> None:
    found = started[0]
    assert sorted(found) == ["actor 0", "actor 1", "critic 0", "reference 0", "reward 0", "rollout 0", "rollout 1"]
    sharing: dict[str, list[str]] = {}
    for name, report in found.items():
        environment = report["environment"]
        assert environment["DS_ACCELERATOR"] == "cuda", name
        assert environment["VLLM_TARGET_DEVICE"] is None and environment["TORCH_COMPILE_DISABLE"] is None, name
        sharing.setdefault(environment["CUDA_VISIBLE_DEVICES"], []).append(name.split()[0])
    assert set(sharing) == {"0", "1", "2", "3"}
    (host,) = placed(plan(SHARED, "ppo", tmp_path, made_model, made_reward)[0])
    assert sorted(map(sorted, sharing.values())) == sorted(map(sorted, host))


def test_threads_are_those_of_the_plan(started: list[Reports]) -> None:
    """Eight cores for the three optimizers that may compute there; one for an engine."""
    for name, report in started[0].items():
        expected = 1 if name.startswith("rollout") else 8 // 3
        assert report["environment"]["OMP_NUM_THREADS"] == str(expected), name
        assert report["threads"] == expected, name


def test_an_engine_asks_for_what_the_plan_gives_it(
    started: list[Reports], made_model: Path, made_reward: Path, tmp_path: Path
) -> None:
    held = plan(SHARED, "ppo", tmp_path, made_model, made_reward)[1].footprints["rollout"].held
    for number in range(2):
        arguments = started[0][f"rollout {number}"]["arguments"]
        assert (arguments["dtype"], arguments["enforce_eager"]) == ("bfloat16", False)
        assert arguments["kv_cache_memory_bytes"] == held["KV cache"] == 4 << 30
        asked = arguments["gpu_memory_utilization"] * GPU_BYTES
        assert asked == pytest.approx(held["weights"] + held["KV cache"], rel=1e-6)
        assert "enable_chunked_prefill" not in arguments  # what only a CPU needs


def test_a_tensor_parallel_engine_has_all_of_its_gpus(
    started: list[Reports], made_model: Path, made_reward: Path, tmp_path: Path
) -> None:
    """It asks each of them for its part of the weights."""
    ((name, report),) = started[1].items()
    assert name == "rollout 0" and report["environment"]["CUDA_VISIBLE_DEVICES"] == "0,1"
    arguments = report["arguments"]
    assert (arguments["tensor_parallel_size"], arguments["distributed_executor_backend"]) == (2, "mp")
    held = plan(PARALLEL, "ppo", tmp_path, made_model, made_reward)[1].footprints["rollout"].held
    asked = arguments["gpu_memory_utilization"] * GPU_BYTES
    assert asked == pytest.approx(held["weights"] + held["KV cache"], rel=1e-6)
