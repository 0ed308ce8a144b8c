"""One Ray cluster for the whole test run."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """The cluster that every in-process integration test shares."""
    from quadriga.actors.settings import ClusterSettings
    from quadriga.orchestrator.cluster import connected

    with connected(ClusterSettings()):
        yield
