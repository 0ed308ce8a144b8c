"""Three hosts in network namespaces, each with its own sshd: launched on, cut off, looked at."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from helpers.namespaces import Hosts, hosts
from helpers.small_stages import CLUSTER, stage
from safetensors.torch import load_file

from quadriga.data.rundir import RunDir
from quadriga.launch.config.load import build
from quadriga.orchestrator.run import run
from quadriga.orchestrator.tracking.tracker import read_metrics

pytestmark = pytest.mark.integration

SECRET = "c0ffee" * 6
NODES = {
    "placement": [["actor", "critic", "reference", "reward"], ["rollout"]],
    "actor": {"ranks": 2, "nodes": 2},
    "rollout": CLUSTER["rollout"] | {"workers": 2, "nodes": 1},
}


@pytest.fixture(scope="module")
def three_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with hosts(tmp_path_factory.mktemp("hosts"), 3) as made:
        yield made


@pytest.fixture
def fourth(three_hosts: Hosts) -> Iterator[Hosts]:
    """One host more, and every cable in its place again afterwards."""
    three_hosts.add()
    yield three_hosts
    for number in range(1, len(three_hosts.addresses) + 1):
        three_hosts.mend(number)


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


SPREAD: dict[str, dict[str, Any]] = {
    "sft": {"actor": {"ranks": 2, "nodes": 2}},
    "ppo": NODES,
}
"""Kind of stage -> its processes on two or three hosts."""
ALONE: dict[str, dict[str, Any]] = {
    "sft": {"actor": {"ranks": 2}},
    "ppo": {"actor": {"ranks": 2}, "rollout": CLUSTER["rollout"] | {"workers": 2}},
}
PLACES = {
    "sft": {"actor 0": "10.77.0.1", "actor 1": "10.77.0.2"},
    "ppo": {
        "actor 0": "10.77.0.1",
        "actor 1": "10.77.0.2",
        "critic 0": "10.77.0.1",
        "reference 0": "10.77.0.1",
        "reward 0": "10.77.0.1",
        "rollout 0": "10.77.0.3",
        "rollout 1": "10.77.0.3",
    },
}
SLOW = {
    "sft": {"action": "slow", "role": "actor", "step": 2, "phase": "update", "seconds": 10},
    "ppo": {"action": "slow", "role": "rollout", "step": 2, "phase": "generate", "seconds": 10},
}


@pytest.mark.parametrize("kind", ["sft", pytest.param("ppo", marks=pytest.mark.cluster)])
def test_a_run_on_hosts_gives_the_weights_of_one_host(
    kind: str,
    three_hosts: Hosts,
    made_model: Path,
    made_reward: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The launching process is killed on the way; launched again, it follows the run that went on without it."""
    monkeypatch.setenv("QUADRIGA_TEST_SECRET", SECRET)
    addresses = sorted(set(PLACES[kind].values()))
    ssh = three_hosts.ssh(hosts=addresses, environment=["QUADRIGA_TEST_SECRET"])
    common = {"tracking": {"wandb": False}, "checkpoint": {"every_steps": 1}}
    config = stage(kind, tmp_path / "hosts", made_model, made_reward) | common
    config |= {"cluster": CLUSTER | SPREAD[kind] | {"ssh": ssh}, "faults": {"planned": [SLOW[kind]]}}
    run_dir = RunDir(config["run_dir"])
    first = quadriga(tmp_path, config)
    event(run_dir, first, event="fault_injected")
    parents = {psutil.Process(pid).parent() for _, pid in run_dir.read_run()["processes"].values()}
    forked = ["fork_server" in " ".join(parent.cmdline()) for parent in parents if parent]
    assert forked == [True] * len(addresses)  # one server per host
    first.kill()
    first.wait()
    said = quadriga(tmp_path, config).communicate(timeout=400)[0]
    assert "The cluster of this run is already up" in said
    record = run_dir.read_run()
    assert record.get("status") == "finished", said
    assert len(record["attempts"]) == 1
    written = [file for file in run_dir.path.rglob("*") if file.is_file()]
    assert written
    assert not any(SECRET.encode() in file.read_bytes() for file in written)
    assert {name: record["nodes"][node] for name, (node, _) in record["processes"].items()} == PLACES[kind]
    assert [three_hosts.inside(number) for number in (1, 2, 3)] == [[], [], []]
    alone = stage(kind, tmp_path / "one", made_model, made_reward) | common | {"cluster": CLUSTER | ALONE[kind]}
    single = build(alone)
    assert run(single) == 0
    exported = sorted(folder.name for folder in run_dir.export_dir.iterdir())
    assert exported == (["policy"] if kind == "sft" else ["critic", "policy"])
    for name in exported:
        ours = load_file(run_dir.export_dir / name / "model.safetensors")
        theirs = load_file(RunDir(single.run_dir).export_dir / name / "model.safetensors")
        assert set(ours) == set(theirs)
        for key, tensor in theirs.items():
            assert torch.allclose(ours[key], tensor, rtol=0, atol=1e-5), (name, key)
    assert len(read_metrics(run_dir.metrics_path)) == config["total_steps"]


def event(run_dir: RunDir, process: "subprocess.Popen[str]", **wanted: Any) -> dict[str, Any]:
    """Wait for an event with these fields in run.json."""
    deadline = time.monotonic() + 240
    while True:
        for found in run_dir.events():
            if wanted.items() <= found.items():
                return found
        assert process.poll() is None and time.monotonic() < deadline, (wanted, run_dir.events(), process.communicate())
        time.sleep(0.05)


@pytest.mark.cluster
def test_lost_hosts_are_replaced_or_named(
    three_hosts: Hosts, made_model: Path, made_reward: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A raylet is killed, then a link is cut during generation, then one during an update, with one host to spare."""
    four = request.getfixturevalue("fourth")
    slow = {"action": "slow", "seconds": 25}
    faults = [
        slow | {"role": "rollout", "step": 2, "phase": "generate"},
        slow | {"role": "rollout", "step": 4, "phase": "generate"},
        slow | {"role": "actor", "rank": 0, "step": 6, "phase": "update"},
    ]
    deadlines = CLUSTER["deadlines"] | {"heartbeat": 30, "start": 100}
    cluster = CLUSTER | NODES | {"ssh": four.ssh(), "deadlines": deadlines}
    config = ppo(tmp_path / "run", made_model, made_reward, cluster=cluster, total_steps=8)
    config |= {"faults": {"planned": faults}, "name": "faulty"}
    run_dir = RunDir(config["run_dir"])
    process = quadriga(tmp_path, config, "--shared", str(made_model), "--shared", str(made_reward))
    event(run_dir, process, event="fault_injected", step=2)
    assert four.kill(3, "raylet")
    assert event(run_dir, process, event="node_lost", node="10.77.0.3")["replaced_by"] == "10.77.0.4"
    event(run_dir, process, event="fault_injected", step=4)
    four.cut(4)
    assert event(run_dir, process, event="node_lost", node="10.77.0.4")["replaced_by"] is None
    event(run_dir, process, event="fault_injected", step=6)
    four.cut(2)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 1
    assert "the machine 10.77.0.2 is lost, and none joined the cluster in its place" in " ".join(said.split())
    assert [row["global_step"] for row in read_metrics(run_dir.metrics_path)] == [1, 2, 3, 4, 5]
    assert "10.77.0.2" in run_dir.read_run()["attempts"][-1]["error"]
