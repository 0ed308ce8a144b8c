"""A config names one launcher at most, and values that it cannot use are refused when the config is read."""

from itertools import combinations
from typing import Any

import pytest
from pydantic import ValidationError

from quadriga.actors.settings import ClusterSettings

KUBERNETES = {"image": "i", "claim": "c", "worker": {"cpus": 1, "memory": "1Gi"}}
WAYS: dict[str, Any] = {
    "address": "auto",
    "ssh": {"hosts": ["a"]},
    "slurm": {"cpus": 1},
    "kubernetes": KUBERNETES,
}


@pytest.mark.parametrize("name", WAYS)
def test_one_way_is_enough(name: str) -> None:
    assert getattr(ClusterSettings.model_validate({name: WAYS[name]}), name) is not None


@pytest.mark.parametrize("names", list(combinations(WAYS, 2)), ids="-".join)
def test_two_ways_are_refused(names: tuple[str, str]) -> None:
    with pytest.raises(ValidationError, match=f"give one of `{names[0]}` and `{names[1]}`"):
        ClusterSettings.model_validate({name: WAYS[name] for name in names})


@pytest.mark.parametrize(
    ("way", "key", "value"),
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
def test_value_that_a_launcher_cannot_use_is_refused(way: str, key: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=key):
        ClusterSettings.model_validate({way: WAYS[way] | {key: value}})
