"""`cluster.weight_transfer`: one of ours, or a user's."""

import subprocess
import sys
from pathlib import Path

import pytest

from quadriga.actors.settings import ClusterSettings
from quadriga.actors.transfer_settings import TRANSFERS, ObjectStore
from quadriga.actors.weights.base import Receiver, Sender
from quadriga.data.registry import import_object


def test_the_object_store_is_the_default() -> None:
    assert ClusterSettings().weight_transfer == ObjectStore()
    assert ClusterSettings().model_dump(mode="json")["weight_transfer"] == {"type": "object_store"}


@pytest.mark.parametrize("name", TRANSFERS)
def test_every_transfer_names_its_two_sides(name: str) -> None:
    assert issubclass(import_object(TRANSFERS[name].sender), Sender)
    assert issubclass(import_object(TRANSFERS[name].receiver), Receiver)


def test_a_config_with_a_user_transfer_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from quadriga.actors.transfer_settings import TransferSettings\n"
        "from quadriga.actors.weights.base import Receiver, Sender\n"
        "class Mine(TransferSettings):\n    folder: str\n"
    )
    program = (
        "import sys\nfrom quadriga.actors.settings import ClusterSettings\n"
        "cluster = ClusterSettings.model_validate({'weight_transfer': {'type': 'mine:Mine', 'folder': 'x'}})\n"
        "assert cluster.model_dump()['weight_transfer'] == {'type': 'mine:Mine', 'folder': 'x'}\n"
        "print([name for name in ('torch', 'vllm', 'ray') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr
