"""Checks of this machine: Python, disk, memory, ports, installed versions and GPU."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from quadriga.actors.runtime.cpu_quota import cpu_quota
from quadriga.actors.runtime.device import cores
from quadriga.launch.checks.report import CheckResult, gpu_count
from quadriga.orchestrator.tracking.tracker import has_wandb_key

GIB = 1 << 30
IMPORTS = ("torch", "transformers", "ray", "deepspeed", "vllm", "wandb")
"""Packages that are imported as a test, each in a separate process."""


def check_machine() -> Iterator[CheckResult]:
    """Check everything that can be seen without starting Ray; the test imports take about half a minute."""
    yield check_python(sys.version_info[:2])
    yield check_disk(Path.cwd(), shutil.disk_usage(Path.cwd()).free)
    yield check_memory(_available_memory())
    yield check_cores(cores(), cpu_quota())
    yield check_compiler()
    yield check_shared_memory()
    yield check_ports()
    yield from check_gpus()
    yield check_tracking_key()
    yield from check_versions()
    with ThreadPoolExecutor(max_workers=cores()) as threads:
        yield from threads.map(check_import, IMPORTS)


def check_python(found: Sequence[int]) -> CheckResult:
    """Check that Python is 3.11 or 3.12."""
    text = ".".join(map(str, found))
    if not (3, 11) <= tuple(found) < (3, 13):
        problem = f"Quadriga needs Python 3.11 or 3.12, and this is {text}: install one and run `make clean setup`."
        return CheckResult("problem", "python", problem)
    return CheckResult("ok", "python", f"Python {text}")


def check_disk(folder: Path, free: int) -> CheckResult:
    """Check that there is room for checkpoints. free: bytes."""
    if free < 2 * GIB:
        text = f"Only {free / GIB:.1f} GB of disk is free at {folder}: free at least 2 GB, or set `run_dir` elsewhere."
        return CheckResult("problem", "disk", text)
    return CheckResult("ok", "disk", f"{free / GIB:.0f} GB free at {folder}")


def check_memory(free: int | None) -> CheckResult:
    """Check that there is room for the processes of the pocket recipe. free: bytes; None if unknown."""
    if free is None:
        return CheckResult("note", "memory", "This system does not report how much memory is free.")
    if free < 4 * GIB:
        text = f"Only {free / GIB:.1f} GB of memory is free: free at least 4 GB, which even tiny models and vLLM need."
        return CheckResult("problem", "memory", text)
    return CheckResult("ok", "memory", f"{free / GIB:.0f} GB of memory free")


def check_cores(count: int, quota: float | None) -> CheckResult:
    """Say how many cores a run uses. quota: cores' worth of time that the container allows, None without a limit."""
    limit = "" if quota is None else f" (the container's quota is {quota:g} cores' worth of time)"
    return CheckResult("ok", "cores", f"{count} CPU cores{limit}")


def check_compiler() -> CheckResult:
    """Look for a C++ compiler. DeepSpeed builds its offloaded optimizer with one; CPU runs do not need it."""
    found = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if found is None:
        text = "No C++ compiler is installed. Only `offload` on a GPU needs one (for example the package g++)."
        return CheckResult("note", "compiler", text)
    return CheckResult("ok", "compiler", f"C++ compiler {found}")


def check_shared_memory() -> CheckResult:
    """Check that /dev/shm has room. Where it is small, as in many containers, Ray keeps objects in slower files."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return CheckResult("note", "shared memory", "There is no /dev/shm: Ray keeps objects in slower files.")
    free = shutil.disk_usage(folder).free
    if free < GIB:
        text = f"/dev/shm has {free / GIB:.1f} GB free: Ray keeps objects in slower files. In Docker add --shm-size=4g."
        return CheckResult("note", "shared memory", text)
    return CheckResult("ok", "shared memory", f"{free / GIB:.0f} GB of shared memory free")


def check_ports() -> CheckResult:
    """Check that processes on this machine can reach each other."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        text = f"Processes cannot reach each other over 127.0.0.1 ({error}): allow local connections."
        return CheckResult("problem", "ports", text)
    return CheckResult("ok", "ports", "local connections work")


def check_gpus() -> Iterator[CheckResult]:
    """List the GPUs that torch sees, and note a CPU build of torch on a machine with a GPU."""
    count = gpu_count()
    if count:
        import torch

        for index in range(count):
            properties = torch.cuda.get_device_properties(index)
            yield CheckResult("ok", "gpu", f"{properties.name}, {properties.total_memory / GIB:.0f} GB")
    elif Path("/dev/nvidia0").exists():
        text = "There is a GPU, but this torch cannot use it: for the CUDA build run `make clean setup EXTRA=cuda`."
        yield CheckResult("note", "gpu", text)
    else:
        yield CheckResult("ok", "gpu", "none: everything runs on CPU")


def check_tracking_key() -> CheckResult:
    """Say whether there is a W&B key, never its value."""
    if has_wandb_key():
        return CheckResult("ok", "W&B", "there is a key: runs are sent to W&B")
    return CheckResult("ok", "W&B", "no key (`wandb login`): runs are written offline, for `wandb sync` later")


def pins() -> dict[str, str]:
    """Return package -> the version that Quadriga requires."""
    return {name: wanted for name, wanted, _ in _pins()}


def check_versions() -> Iterator[CheckResult]:
    """Check that the installed versions are the ones that Quadriga pins."""
    for name, wanted, marker in _pins():
        try:
            found = version(name)
        except PackageNotFoundError:
            if "extra" not in marker:
                yield CheckResult("problem", name, f"{name} is not installed: run `make setup`.")
            continue
        if found.partition("+")[0] != wanted:
            text = f"{name} is {found}, but Quadriga needs {wanted}: run `make clean setup`."
            yield CheckResult("problem", name, text)
        else:
            yield CheckResult("ok", name, found)


def _pins() -> list[tuple[str, str, str]]:
    """Return (package, version, marker) of Quadriga's pinned requirements."""
    found = [re.match(r"([\w-]+)(?:\[[^\]]*\])?==([\w.]+)(.*)", line) for line in requires("quadriga") or []]
    return [(pin[1], pin[2], pin[3]) for pin in found if pin]


def check_import(name: str) -> CheckResult:
    """Import a package in a separate process: a broken build may crash, and must not crash this one."""
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "DS_ACCELERATOR": "" if gpu_count() else "cpu"}
    environment = {key: value for key, value in environment.items() if value}
    command = [sys.executable, "-W", "ignore", "-c", f"import {name}"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired:
        return CheckResult("problem", name, f"`import {name}` did not finish within 5 minutes: is the disk overloaded?")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return CheckResult("problem", name, f"`import {name}` fails ({reason}): run `make clean setup`.")
    return CheckResult("ok", name, "imports")


def _available_memory() -> int | None:
    """Return the bytes available without swapping, the lesser of machine and container; None if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return min(free, limit - used)
    except (OSError, ValueError):
        return free
