"""Public data that tests read where it lies beside the project; nothing of it is copied into it."""

from pathlib import Path

import pytest

CORPORA = Path(__file__).resolve().parents[2] / "../shared/data"


def needs(*names: str) -> pytest.MarkDecorator:
    """Skip a test, with the reason, where one of these corpora is missing."""
    missing = [name for name in names if not (CORPORA / name).exists()]
    return pytest.mark.skipif(bool(missing), reason=f"the {', '.join(missing)} data is not here")
