"""Three hosts in network namespaces, each with its own sshd: launched on, cut off, looked at."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from namespaces import Hosts, hosts
from safetensors.torch import load_file
from tiny import CLUSTER, stage

from quadriga.data.rundir import RunDir
from quadriga.launch.config import build
from quadriga.orchestrator.run import run
from quadriga.orchestrator.tracking import read_metrics

pytestmark = pytest.mark.integration

NODES = {
    "placement": [["actor", "critic", "reference", "reward"], ["rollout"]],
    "actor": {"ranks": 2, "nodes": 2},
    "rollout": CLUSTER["rollout"] | {"workers": 2, "nodes": 1},
}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with hosts(tmp_path_factory.mktemp("hosts"), 3) as made:
        yield made


def ppo(folder: Path, model: Path, reward: Path, **more: Any) -> dict[str, Any]:
    config = stage("ppo", folder, model, reward) | {"tracking": {"wandb": False}, "checkpoint": {"every_steps": 1}}
    return config | more


def quadriga(folder: Path, config: dict[str, Any], *words: str, verb: str = "launch") -> "subprocess.Popen[str]":
    """A command on a config, with what it says in one stream."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return subprocess.Popen(
        [sys.executable, "-m", "quadriga.launch", verb, str(file), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )


def test_a_run_on_three_hosts_gives_the_weights_of_one_host(
    three: Hosts, made_model: Path, made_reward: Path, tmp_path: Path
) -> None:
    cluster = CLUSTER | NODES | {"ssh": three.ssh()}
    config = ppo(tmp_path / "three", made_model, made_reward, cluster=cluster)
    said = quadriga(tmp_path, config, "--shared", str(made_model), "--shared", str(made_reward)).communicate(
        timeout=400
    )[0]
    run_dir = RunDir(config["run_dir"])
    assert run_dir.read_run().get("status") == "finished", said
    record = run_dir.read_run()
    where = {name: record["nodes"][node] for name, (node, _) in record["processes"].items()}
    assert where == {
        "actor 0": "10.77.0.1",
        "actor 1": "10.77.0.2",
        "critic 0": "10.77.0.1",
        "reference 0": "10.77.0.1",
        "reward 0": "10.77.0.1",
        "rollout 0": "10.77.0.3",
        "rollout 1": "10.77.0.3",
    }
    assert [three.inside(number) for number in (1, 2, 3)] == [[], [], []]
    alone = CLUSTER | {"actor": {"ranks": 2}, "rollout": CLUSTER["rollout"] | {"workers": 2}}
    single = build(ppo(tmp_path / "one", made_model, made_reward, cluster=alone))
    assert run(single) == 0
    for name in ("policy", "critic"):
        ours = load_file(run_dir.export_dir / name / "model.safetensors")
        theirs = load_file(RunDir(single.run_dir).export_dir / name / "model.safetensors")
        assert set(ours) == set(theirs)
        for key, tensor in theirs.items():
            assert torch.allclose(ours[key], tensor, rtol=0, atol=1e-5), (name, key)
    assert len(read_metrics(run_dir.metrics_path)) == config["total_steps"]
    assert time.time() > 0
