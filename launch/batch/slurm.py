"""A run as a Slurm job: a Ray node on each of its nodes, a stop before the time limit, and the queue again."""

import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from quadriga.actors.launcher_settings import SlurmSettings
from quadriga.launch.batch.submission import config_text, fingerprint, job_name, run_dir, submit

BEGINNING = r"""
set -euo pipefail
# This script runs on the job's first node, which becomes Ray's head.
head=$(hostname -I | awk '{print $1}')
entry=(python -m quadriga.launch run "$config" cluster.address="$head:$port" cluster.slurm=null)
everywhere=(--nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --cpus-per-task="$cpus")
# Sockets may have no long paths, and /tmp/ray may be somebody else's.
export RAY_TMPDIR=/tmp/quadriga-$SLURM_JOB_ID RAY_USAGE_STATS_ENABLED=0
# Whoever can reach Ray's port can run code as this user: they need the job's token, which only this user can read.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$folder/.token-$SLURM_JOB_ID"
(umask 077 && od -An -tx1 -N32 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")

give_up_at='' background=()

ask_to_stop() {
  mkdir -p "$run_dir/requests" && echo true >"$run_dir/requests/stop.json"
}

end_of_time() {
  give_up_at=$((SECONDS + warning - 30))
  ask_to_stop
}

await() { # Wait for a process with naps, between which traps run; sets $code.
  while kill -0 "$1" 2>/dev/null; do
    sleep 1
    # A step that takes longer than the warning is lost: the run goes on from the checkpoint before it.
    if [[ $give_up_at ]] && ((SECONDS > give_up_at)); then
      give_up_at=''
      scontrol requeue "$SLURM_JOB_ID" || true
    fi
  done
  code=0 && wait "$1" || code=$?
}

clean_up() { # As far as it goes: the job ends with the run's exit code.
  set +e
  rm -f "$RAY_AUTH_TOKEN_PATH"
  for process in "${background[@]}"; do
    kill "$process" 2>/dev/null && await "$process"
  done
  srun "${everywhere[@]}" "${options[@]}" rm -rf "$RAY_TMPDIR"
}

trap clean_up EXIT
trap end_of_time USR1
trap ask_to_stop TERM

# Whoever owns that folder decides what Ray reads from it.
srun "${everywhere[@]}" "${options[@]}" bash -c 'mkdir -pm 700 "$0" && [[ -O $0 && ! -L $0 ]]' "$RAY_TMPDIR"
"""

EXCLUSIVE = r"""
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=$start_seconds
# The other nodes notice that the head has ended when Ray has not found it for a minute.
srun "${everywhere[@]}" "${options[@]}" \
  ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" "${ray[@]}" -- "${entry[@]}" &
await $!
"""

SHARED = r"""
# Other jobs run here: ports that would be the same for all follow from the job's number, a worker's is any free one.
ray+=(--node-manager-port=$((port + 1)) --object-manager-port=$((port + 2)) --metrics-export-port=$((port + 3))
  --dashboard-agent-listen-port=$((port + 4)) --dashboard-agent-grpc-port=$((port + 5))
  --runtime-env-agent-port=$((port + 6)) --min-worker-port=0 --max-worker-port=0 --block)
first=(--relative=0 --nodes=1 --ntasks=1 --cpus-per-task="$cpus")
others=(--relative=1 --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --cpus-per-task="$cpus")
count='import ray, sys
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
sys.exit(sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]))'
nodes_are_up() { # So many of them, in the time that a start may take.
  until said=$(srun --overlap "${first[@]}" "${options[@]}" python -c "$count" "$head:$port" "$1" 2>&1); do
    if ((SECONDS > start_seconds)); then
      echo "Ray has not come up on $1 of the job's nodes in $start_seconds seconds. $said" >&2
      return 1
    fi
    sleep 2
  done
}

srun "${first[@]}" "${options[@]}" ray start --head --node-ip-address="$head" --port=$port \
  --ray-client-server-port=$((port + 7)) --include-dashboard=false "${ray[@]}" &
background+=($!)
nodes_are_up 1
if ((SLURM_JOB_NUM_NODES > 1)); then
  srun "${others[@]}" "${options[@]}" ray start --address="$head:$port" "${ray[@]}" &
  background+=($!)
  nodes_are_up "$SLURM_JOB_NUM_NODES"
fi
srun --overlap "${first[@]}" "${options[@]}" "${entry[@]}" &
await $!
"""

END = r"""
if [[ $give_up_at && $code -ne 0 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def slurm_files(stage: Any, folder: Path) -> dict[str, str]:
    """File name -> text of the resolved config and of the sbatch script, which expects both in `folder`.

    Their names hold a fingerprint: launching another config leaves the files of a queued job alone.
    """
    settings: SlurmSettings = stage.cluster.slurm
    where = run_dir(stage).absolute()
    config = config_text(stage, where)
    config_name = f"config-{fingerprint(config)}.yaml"
    setup = settings.setup or [f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"']
    ray = [f"--num-cpus={settings.cpus}", f"--num-gpus={settings.gpus}"]
    values = {
        "folder": shlex.quote(str(folder.absolute())),
        "config": shlex.quote(str(folder.absolute() / config_name)),
        "run_dir": shlex.quote(str(where)),
        "port": "6379" if settings.exclusive else "$((20000 + SLURM_JOB_ID % 1200 * 10))",
        "cpus": str(settings.cpus),
        "warning": str(settings.warning),
        "start_seconds": str(int(stage.cluster.deadlines.start)),
        "ray": f"({shlex.join(ray)})",
        "options": f"({shlex.join(settings.srun_options)})",
    }
    script = "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {option}" for option in _sbatch_options(stage, settings)),
            "",
            *setup,
            "",
            *(f"{name}={value}" for name, value in values.items()),
            BEGINNING + (EXCLUSIVE if settings.exclusive else SHARED) + END,
        ]
    )
    return {config_name: config, f"job-{fingerprint(script)}.sh": script}


def launch_slurm(stage: Any, console: Console, dry_run: bool, folder: Path) -> int:
    """Write the job's files into `folder`, on storage that all nodes see, and submit it; returns the exit code.

    dry_run: print both instead. Relative paths in the config start where this is called, in the job too.
    Raises UserError when sbatch is missing or refuses the job.
    """
    files = slurm_files(stage, folder)
    log = str(folder.absolute()).replace("%", "%%") + "/%j.log"
    script = folder.absolute() / next(name for name in files if name.endswith(".sh"))
    command = ["sbatch", f"--chdir={Path.cwd()}", f"--output={log}", str(script)]
    return submit(console, files, folder, command, dry_run, "Launch on a login node of the Slurm cluster")


def _sbatch_options(stage: Any, settings: SlurmSettings) -> list[str]:
    named = {"partition": settings.partition, "account": settings.account, "time": settings.time}
    return [
        f"--job-name={job_name(stage, 64)}",
        f"--nodes={settings.nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={settings.cpus}",
        *([f"--gpus-per-task={settings.gpus}"] if settings.gpus else []),
        *(["--exclusive", "--mem=0"] if settings.exclusive else []),
        *(f"--{name}={value}" for name, value in named.items() if value is not None),
        "--requeue",
        "--open-mode=append",
        # To the script alone: a signal to every process would end Ray before the run could save.
        f"--signal=B:USR1@{settings.warning}",
        *settings.options,
    ]
