"""Settings of launchers: a cluster has one of them, and invalid values are refused when the config is read."""

from itertools import combinations
from typing import Any

import pytest
from pydantic import ValidationError

from quadriga.actors.settings import ClusterSettings

KUBERNETES = {"image": "i", "claim": "c", "worker": {"cpus": 1, "memory": "1Gi"}}
LAUNCHERS: dict[str, Any] = {
    "address": "auto",
    "ssh": {"hosts": ["a"]},
    "slurm": {"cpus": 1},
    "kubernetes": KUBERNETES,
}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_each_launcher_is_valid_alone(name: str) -> None:
    assert getattr(ClusterSettings.model_validate({name: LAUNCHERS[name]}), name) is not None


@pytest.mark.parametrize("names", list(combinations(LAUNCHERS, 2)), ids="-".join)
def test_two_launchers_are_refused(names: tuple[str, str]) -> None:
    with pytest.raises(ValidationError, match=f"give one of `{names[0]}` and `{names[1]}`"):
        ClusterSettings.model_validate({name: LAUNCHERS[name] for name in names})


@pytest.mark.parametrize(
    ("launcher", "key", "value"),
    [
        ("slurm", "partition", "gpu; rm"),
        ("slurm", "options", ["--comment=a b"]),
        ("slurm", "warning", 10),
        ("kubernetes", "mount", "relative"),
        ("kubernetes", "mount", "/with space"),
        ("kubernetes", "claim", "Not_A_Name"),
        ("kubernetes", "worker", {"cpus": 1, "memory": "lots"}),
        ("kubernetes", "environment", ["A=secret"]),
    ],
)
def test_invalid_values_are_refused(launcher: str, key: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=key):
        ClusterSettings.model_validate({launcher: LAUNCHERS[launcher] | {key: value}})
