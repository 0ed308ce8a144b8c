"""Preparing torch before it computes on several threads."""

import subprocess
import sys

import pytest

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
