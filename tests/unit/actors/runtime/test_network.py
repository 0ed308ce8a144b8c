"""The interface of an address, against the system's own table."""

import json
import os
import subprocess

import pytest

from quadriga.actors.runtime.network import interface_of, use_interface_of


def test_loopback_is_found() -> None:
    assert interface_of("127.0.0.1") == "lo"


def test_unused_address_has_no_interface() -> None:
    assert interface_of("192.0.2.1") is None  # reserved for documentation (RFC 5737)


def test_every_address_of_this_machine_is_found() -> None:
    try:
        listed = json.loads(subprocess.run(["ip", "-j", "-4", "addr"], capture_output=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("the program `ip` is not installed")
    for link in listed:
        first = next(iter(link["addr_info"]), None)
        if first is not None:
            assert interface_of(first["local"]) == link["ifname"]


def test_interface_set_by_the_user_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    use_interface_of("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"
    assert os.environ.pop("NCCL_SOCKET_IFNAME") == "lo"
