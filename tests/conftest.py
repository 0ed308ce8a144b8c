"""What every test runs under: no network look-ups, no tracking account, one Ray cluster per test process.

Two processes share the tests that start clusters (`make test`), because half of their time is waiting. Each process
takes whole files, so that what a file starts for all of its tests starts once.
"""

import os
from collections.abc import Iterator

import pytest

os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
)
for secret in ("WANDB_API_KEY", "HF_TOKEN"):
    os.environ.pop(secret, None)

GROUPS = {
    "test_recovery": "interruptions",
    "test_resume": "interruptions",  # both compare with the same uninterrupted runs
    "test_cluster": "hosts",
    "test_hosts": "hosts",  # both make network namespaces
}
"""Files that one process runs. The longest: they begin first, so that the processes end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Name the group of each test for `pytest --dist loadgroup`."""
    groups = list(dict.fromkeys(GROUPS.values()))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(GROUPS.get(item.path.stem, item.path.stem)))
    items.sort(key=lambda item: groups.index(GROUPS[item.path.stem]) if item.path.stem in GROUPS else len(groups))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """The cluster that every in-process integration test shares."""
    from quadriga.actors.settings import ClusterSettings
    from quadriga.orchestrator.cluster.processes import connected

    with connected(ClusterSettings()):
        yield
