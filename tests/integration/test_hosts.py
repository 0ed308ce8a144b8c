"""Wrong clusters: each is refused in one paragraph before anything starts, and nothing is left running."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.namespaces import Hosts, hosts
from helpers.small_stages import CLUSTER, stage

from quadriga.launch.cli.app import main
from quadriga.launch.config.load import build
from quadriga.launch.ssh import preflight

pytestmark = pytest.mark.integration

Launch = Callable[[dict[str, Any]], str]


@pytest.fixture(scope="module")
def four_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Three hosts, and a fourth that has a run directory of its own."""
    with hosts(tmp_path_factory.mktemp("hosts"), 3) as made:
        (made.folder / "runs").mkdir()
        made.add(private=made.folder / "runs")
        yield made


@pytest.fixture
def config(four_hosts: Hosts, made_model: Path, made_reward: Path, tmp_path: Path) -> dict[str, Any]:
    """PPO on two of the hosts, in order."""
    first, second, *_ = four_hosts.addresses
    found = stage("ppo", tmp_path / "data", made_model, made_reward)
    cluster = CLUSTER | {"ssh": four_hosts.ssh(hosts=[first, second]), "device": "cpu"}
    return found | {"name": "wrong", "run_dir": str(four_hosts.folder / "runs" / "ppo"), "cluster": cluster}


@pytest.fixture
def launch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Launch:
    """Has `quadriga launch` refuse a config; returns its one paragraph."""

    def refused(config: dict[str, Any]) -> str:
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        assert main(["launch", str(file)]) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said and said.count("Error:") == 1
        return " ".join(said[said.index("Error:") :].split())

    return refused


@pytest.fixture
def refused(launch: Launch, four_hosts: Hosts) -> Launch:
    """As `launch`, and sees that nothing runs and that there is no run."""

    def nothing_left(config: dict[str, Any]) -> str:
        said = launch(config)
        assert [four_hosts.inside(number) for number in range(1, len(four_hosts.addresses) + 1)] == [[]] * len(
            four_hosts.addresses
        )
        assert not (four_hosts.folder / "runs" / "ppo" / "run.json").exists()
        return said

    return nothing_left


def interpreter(folder: Path, setup: str) -> str:
    """A Python that does something first: what a host with another installation would have."""
    (folder / "odd").mkdir(exist_ok=True)
    script = folder / "odd" / "python"
    script.write_text(f'#!/bin/sh\n{setup}\nexec {shlex.quote(sys.executable)} "$@"\n')
    script.chmod(0o755)
    return str(script)


def on_second(folder: Path, four_hosts: Hosts, setup: str) -> str:
    """An interpreter that is odd on the second host only."""
    return interpreter(folder, f'case "$SSH_CONNECTION" in *" {four_hosts.addresses[1]} "*) {setup};; esac')


def test_two_sound_hosts_are_in_order(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], four_hosts: Hosts
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["hosts", str(tmp_path / "config.yaml")]) == 0
    said = capsys.readouterr().out
    assert "Everything is in order." in said and all(address in said for address in four_hosts.addresses[:2])


def test_doctor_looks_at_hosts_too(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], four_hosts: Hosts
) -> None:
    from rich.console import Console

    from quadriga.launch.cli.doctor import hosts as look

    config["cluster"]["ssh"]["hosts"].append("no-such-host.invalid")
    assert look(build(config), Console(width=200)) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "FAIL no-such-host.invalid: ssh cannot get in" in said and "10.77.0.2 10.77.0.2 3." in said


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"ssh": {"hosts": ["no-such-host.invalid"]}}, "no-such-host.invalid: ssh cannot get in (ssh: Could not res"),
        ({"ssh": {"key": "other"}}, "Permission denied"),
        ({"ssh": {"port": 2299}}, "port 2299: Connection refused"),
        ({"ssh": {"python": "/nowhere/python"}}, "`/nowhere/python` cannot be run there"),
        ({"ssh": {"hosts": ["10.77.0.1", "10.77.0.1"]}}, "10.77.0.1 is listed twice"),
        ({"ssh": {"hosts": ["10.77.0.1", "10.77.1"]}}, "10.77.1: it is the same machine as 10.77.0.1"),
        ({"ssh": {"environment": ["QUADRIGA_NOT_SET"]}}, "names QUADRIGA_NOT_SET, which is not set here"),
        ({"ssh": {"worker_ports": [29999, 20000]}}, "worker_ports"),
        ({"address": "auto"}, "give one of `address` and `ssh`"),
        ({"device": "cuda"}, "are needed and the cluster has 0"),
        ({"rollout": {"tensor_parallel": 3}}, "which does not divide the 2 attention heads"),
        ({"actor": {"ranks": 3, "nodes": 2}}, "3 processes, which cannot be spread evenly over 2 nodes"),
        ({"actor": {"nodes": 1}, "rollout": {"workers": 2, "nodes": 2}}, "rollout: 2 machines of its own"),
        ({"ssh": {"hosts": ["10.77.0.1", "10.77.0.4"]}}, "put `run_dir` on storage that every host mounts"),
    ],
)
def test_a_wrong_cluster_is_refused(
    change: dict[str, Any],
    sentence: str,
    config: dict[str, Any],
    refused: Launch,
    four_hosts: Hosts,
) -> None:
    if change.get("ssh", {}).get("key"):
        change = {"ssh": {"key": str(four_hosts.folder / "host")}}  # a key that opens nothing
    with (four_hosts.folder / "known_hosts").open("a") as known:
        known.write(f"[10.77.1]:2222 {' '.join((four_hosts.folder / 'host.pub').read_text().split()[:2])}\n")
    cluster = config["cluster"]
    for key, value in change.items():
        cluster[key] = cluster.get(key, {}) | value if isinstance(value, dict) else value
    assert sentence in refused(config)


@pytest.mark.parametrize(
    ("run_dir", "sentence"),
    [("runs/ppo", "give an absolute path"), ("/etc/hostname/ppo", "be written there: Not a directory")],
)
def test_a_run_directory_that_hosts_cannot_share(
    run_dir: str, sentence: str, config: dict[str, Any], refused: Launch
) -> None:
    assert sentence in refused(config | {"run_dir": run_dir})


def test_versions_that_differ(config: dict[str, Any], refused: Launch, tmp_path: Path, four_hosts: Hosts) -> None:
    about = tmp_path / "site" / "ray-2.9.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: ray\nVersion: 2.9.0\n")
    config["cluster"]["ssh"]["python"] = on_second(tmp_path, four_hosts, f"export PYTHONPATH={about.parent}")
    said = refused(config)
    assert "10.77.0.2: ray is 2.9.0, but only 2.60.0 is known to work" in said and "10.77.0.1" not in said


def test_a_clock_that_is_wrong(config: dict[str, Any], refused: Launch, tmp_path: Path, four_hosts: Hosts) -> None:
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "sitecustomize.py").write_text(
        "import time\nreal = time.time\ntime.time = lambda: real() - 90"
    )
    config["cluster"]["ssh"]["python"] = on_second(tmp_path, four_hosts, f"export PYTHONPATH={tmp_path / 'late'}")
    said = refused(config)
    assert re.search(r"10\.77\.0\.2: its clock is (89|90) s behind this machine's", said)


@pytest.mark.parametrize(
    ("host", "unreachable", "sentence"),
    [
        (2, "10.77.0.1", "10.77.0.2: it cannot reach the head 10.77.0.1 on port 6379"),
        (1, "10.77.0.2", "10.77.0.1: it cannot reach 10.77.0.2 on port 20000"),
    ],
)
def test_hosts_that_do_not_reach_each_other(
    host: int,
    unreachable: str,
    sentence: str,
    config: dict[str, Any],
    refused: Launch,
    four_hosts: Hosts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preflight, "LISTEN_SECONDS", 2)
    route = ("ip", "route", "{}", "unreachable", f"{unreachable}/32")
    assert four_hosts.run(host, *[word.format("add") for word in route]).returncode == 0
    try:
        assert sentence in refused(config)
    finally:
        four_hosts.run(host, *[word.format("del") for word in route])


def test_a_port_that_is_taken(config: dict[str, Any], launch: Launch) -> None:
    code = "import socket; s = socket.create_server(('', 6379)); print('listens', flush=True); s.accept()"
    command = ["ip", "netns", "exec", "quad1", sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout and server.stdout.readline()
        said = launch(config)
        server.kill()
    assert "10.77.0.1: port 6379 is taken there" in said


def test_a_variable_of_several_lines(config: dict[str, Any], refused: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line of a file for each is what the head reads."""
    monkeypatch.setenv("QUADRIGA_TEST_KEY", "-----BEGIN-----\nabc")
    config["cluster"]["ssh"]["environment"] = ["QUADRIGA_TEST_KEY"]
    assert "names QUADRIGA_TEST_KEY, whose value has several lines" in refused(config)
