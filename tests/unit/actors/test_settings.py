"""What `auto` stands for on each device."""

import pytest

from quadriga.actors.settings import ClusterSettings, DeviceDefaults


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cpu", DeviceDefaults("float32", 256 << 20, True, 0)),
        ("cuda", DeviceDefaults("bfloat16", 4 << 30, False, 100_000)),
    ],
)
def test_auto_is_what_suits_the_device(device: str, expected: DeviceDefaults) -> None:
    assert ClusterSettings().on(device) == expected


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_is_given_is_kept(device: str) -> None:
    given = {"dtype": "float32", "persistence_threshold": 7}
    rollout = {"kv_cache_bytes": 1 << 20, "enforce_eager": True}
    settings = ClusterSettings.model_validate(given | {"rollout": rollout})
    assert settings.on(device) == DeviceDefaults("float32", 1 << 20, True, 7)
