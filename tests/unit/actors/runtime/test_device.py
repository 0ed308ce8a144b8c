"""Environments of driver and processes, and preparing torch before it computes on several threads."""

import os
import subprocess
import sys

import pytest

from quadriga.actors.runtime.device import driver_environment, prepare_driver, process_environment

# `mkl_vml_serv_cpu_detect` begins with `mov eax, [rip + offset]` of a static number, -1 until the CPU is known. Of two
# threads in there at once, one may use a kernel of low accuracy.
PROBE = """
import ctypes, pathlib, sys, torch
from quadriga.actors.runtime.device import start_torch
library = ctypes.CDLL(str(pathlib.Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
function = getattr(library, "mkl_vml_serv_cpu_detect", None)
start = ctypes.cast(function, ctypes.c_void_p).value if function else None
code = ctypes.string_at(start, 6) if start else b""
if code[:2] != b"\\x8b\\x05":
    sys.exit("this torch has no such function")
known = ctypes.c_int.from_address(start + 6 + int.from_bytes(code[2:], "little", signed=True))
before = known.value
start_torch("cpu", 2)
print(before, known.value)
"""


def test_vector_functions_are_initialised_by_start_torch() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=120)
    if "no such function" in done.stderr:
        pytest.skip("this build of torch does not have the oneMKL function that was wrong")
    assert done.returncode == 0, done.stderr
    before, after = (int(word) for word in done.stdout.split())
    assert before == -1
    assert after >= 0


def test_accelerator_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the driver's, which Ray's processes inherit."""
    assert driver_environment()["DS_ACCELERATOR"] == "cpu"
    assert process_environment("cpu", 1)["DS_ACCELERATOR"] == "cpu"
    assert process_environment("cuda", 1)["DS_ACCELERATOR"] == "cuda"


@pytest.mark.parametrize(
    ("before", "after"), [(None, "localhost,127.0.0.1,::1"), ("a.org", "a.org,localhost,127.0.0.1,::1")]
)
def test_loopback_is_never_reached_through_a_proxy(
    before: str | None, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY", "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    if before:
        monkeypatch.setenv("no_proxy", before)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    prepare_driver()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == after


def test_no_proxy_is_left_alone_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY", "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    prepare_driver()
    assert "no_proxy" not in os.environ
