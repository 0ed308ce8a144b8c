"""Slurm's commands over nodes that are network and process namespaces of this machine. Needs root."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BRIDGE, ADDRESSES = "qsbr0", ("10.78.0.1", "10.78.0.2")
JOB = 7070
LOCAL = Path(f"/tmp/quadriga-{JOB}")
"""The job's folder on a node; every node has another one there."""

SRUN = r"""#!/bin/bash
# The command runs once on every node asked for, in that node's namespaces; the highest exit code is ours.
relative=0 nodes=1
while [[ $1 == --* ]]; do
  case $1 in
    --nodes=*) nodes=${1#*=} ;;
    --relative=*) relative=${1#*=} ;;
    --ntasks=* | --cpus-per-task=* | --overlap) ;;
    *) echo "srun: no option $1" >&2; exit 2 ;;
  esac
  shift
done
tasks=()
for ((node = relative; node < relative + nodes; node++)); do
  nsenter --target="$(<"$STUB/node-$node")" --net --pid --mount bash -c 'cd "$0" && exec "$@"' "$PWD" "$@" &
  tasks+=($!)
done
trap 'for task in "${tasks[@]}"; do pkill -TERM -P "$task"; done' TERM
highest=0
for task in "${tasks[@]}"; do
  code=0; wait "$task" || code=$?
  while kill -0 "$task" 2>/dev/null; do code=0; wait "$task" || code=$?; done
  ((code > highest)) && highest=$code
done
exit $highest
"""
SCONTROL = r"""#!/bin/bash
[[ $1 == requeue ]] && echo "$2" >>"$STUB/requeued"
"""
SBATCH = r"""#!/bin/bash
printf '%s\n' "$@" >"$STUB/submitted"
echo "Submitted batch job 4242"
"""


class Slurm:
    """Two nodes and the folder of the commands. `start` runs the job that was submitted last."""

    def __init__(self, folder: Path):
        self.stub = folder
        self.commands = folder / "bin"
        self.commands.mkdir(parents=True)
        for name, text in {"srun": SRUN, "scontrol": SCONTROL, "sbatch": SBATCH}.items():
            (self.commands / name).write_text(text)
            (self.commands / name).chmod(0o755)

    def start(self) -> "subprocess.Popen[bytes]":
        """The job's script, on the first node as Slurm starts it."""
        *options, script = (self.stub / "submitted").read_text().splitlines()
        given = dict(option.removeprefix("--").split("=", 1) for option in options)
        slurm = {"SLURM_JOB_ID": str(JOB), "SLURM_JOB_NUM_NODES": str(len(ADDRESSES))}
        with Path(given["output"].replace("%j", str(JOB))).open("ab") as log:
            command = ["ip", "netns", "exec", "qs0", "bash", script]
            return subprocess.Popen(command, env=os.environ | slurm, cwd=given["chdir"], stdout=log, stderr=log)

    def left_behind(self) -> list[str]:
        """What is in the job's folders on the nodes."""
        left: list[str] = []
        for node in range(len(ADDRESSES)):
            process = (self.stub / f"node-{node}").read_text()
            command = ["nsenter", f"--target={process}", "--mount", "ls", "-A", str(LOCAL)]
            left += subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        return left

    def requeued(self) -> list[str]:
        """Jobs that were put back into the queue."""
        file = self.stub / "requeued"
        return file.read_text().split() if file.exists() else []


@contextmanager
def slurm_nodes(folder: Path) -> Iterator[Slurm]:
    """The cluster; nothing of it is left afterwards. Raises CalledProcessError where namespaces are not allowed."""
    slurm, holders = Slurm(folder), []
    try:
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("link", "set", BRIDGE, "up")
        for node, address in enumerate(ADDRESSES):
            _ip("netns", "add", f"qs{node}")
            _ip("link", "add", f"qsv{node}", "type", "veth", "peer", "name", "eth0", "netns", f"qs{node}")
            _ip("link", "set", f"qsv{node}", "master", BRIDGE, "up")
            _ip("-n", f"qs{node}", "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                _ip("-n", f"qs{node}", "link", "set", device, "up")
        LOCAL.mkdir(exist_ok=True)
        for node in range(len(ADDRESSES)):
            # A shell is the node's process 1: it takes in orphans, and all processes of the node end with it.
            alone = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
            own = f"mount -t tmpfs -o mode=700 own {LOCAL} && touch {folder}/up-{node}"
            init = ["bash", "-c", f"{own} && while :; do sleep 1; done"]
            holder = subprocess.Popen(["ip", "netns", "exec", f"qs{node}", *alone, *init])
            holders.append(holder)
            while not (folder / f"up-{node}").exists() and holder.poll() is None:
                time.sleep(0.01)
            child = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().strip()
            (folder / f"node-{node}").write_text(child)
        yield slurm
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()
        for node in range(len(ADDRESSES)):
            subprocess.run(["ip", "netns", "del", f"qs{node}"], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True, check=False)
        shutil.rmtree(LOCAL, ignore_errors=True)


def why_not() -> str | None:
    """Why such nodes cannot be had here; None where they can."""
    if os.geteuid():
        return "network namespaces need root"
    if missing := [name for name in ("ip", "unshare", "nsenter", "pkill") if shutil.which(name) is None]:
        return f"{missing[0]} is not installed"
    if subprocess.run(["unshare", "--net", "--pid", "--fork", "true"], capture_output=True, check=False).returncode:
        return "namespaces are not allowed here"
    return None


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
