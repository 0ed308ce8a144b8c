"""What every test runs under: no network look-ups, no tracking account, one Ray cluster for the whole run."""

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


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """The cluster that every in-process integration test shares."""
    from quadriga.actors.settings import ClusterSettings
    from quadriga.orchestrator.cluster.processes import connected

    with connected(ClusterSettings()):
        yield
