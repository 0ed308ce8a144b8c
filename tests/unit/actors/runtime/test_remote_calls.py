"""Errors of remote calls: those that come again, and those that a replacement may survive."""

import pytest

from quadriga.actors.runtime.fault_injection import InjectedFault
from quadriga.actors.runtime.remote_calls import _failure
from quadriga.data.errors import Fault, Lost, Repeating

TRACEBACK = """ray::ModelWorker.export() (pid=7)
  File "/x/site-packages/quadriga/actors/model/worker.py", line 260, in export
  File "/x/site-packages/transformers/generation/configuration_utils.py", line 925, in save_pretrained
ValueError: odd"""


@pytest.mark.parametrize("phase", ["checkpoint", "export", "resume", "start"])
@pytest.mark.parametrize(
    "error", [ValueError("odd"), KeyError("x"), TypeError("t"), RuntimeError("size mismatch for score.weight")]
)
def test_an_error_of_the_code_in_a_save_or_load_comes_again(phase: str, error: Exception) -> None:
    """Reported: it counted as a lost process, and the run trained again from the start, three times."""
    loss = _failure("actor 0", phase, error, TRACEBACK)
    assert isinstance(loss, Repeating)
    fault = loss.as_fault()
    assert type(fault) is Fault
    assert (fault.phase, fault.process) == (phase, "actor 0")
    where = "(in save_pretrained, transformers/generation/configuration_utils.py, line 925)"
    assert str(fault) == f"{phase}: actor 0 failed: {type(error).__name__}: {error} {where}"


@pytest.mark.parametrize(
    ("phase", "error"),
    [
        ("update", ValueError("odd")),
        ("export", RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer")),
        ("checkpoint", RuntimeError("CUDA error: an illegal memory access was encountered")),
        ("resume", OSError("stale file handle")),
        ("export", InjectedFault("raised on purpose")),
        ("start", TimeoutError("late")),
        ("start", ValueError("Free memory on device cuda:0 (3/80 GiB) is less than desired")),
    ],
)
def test_other_errors_may_pass_with_a_replacement(phase: str, error: Exception) -> None:
    loss = _failure("actor 0", phase, error, TRACEBACK)
    assert type(loss) is Lost
    assert str(loss) == f"{phase}: actor 0 failed: {type(error).__name__}: {error}"
