# shellcheck shell=bash disable=SC2154
# Body of a Slurm job. slurm.py puts above it the #SBATCH lines, the lines of `cluster.slurm.setup`, and these variables:
#   folder         folder of this script and of the config; every node sees it
#   config         path of the resolved config
#   run_dir        path of the run directory
#   exclusive      true: the job has whole nodes; false: other jobs run on them too
#   port           port of Ray's head; with exclusive=false the first of eight ports
#   cpus           CPU cores per node
#   warning        seconds between Slurm's USR1 signal and the time limit
#   start_seconds  longest wait for Ray to start, in seconds
#   ray            array of options of `ray start`
#   options        array of options of srun
# The job runs it on its first node, which becomes Ray's head.

set -euo pipefail
head=$(hostname -I | awk '{print $1}')
entry=(python -m quadriga.launch run "$config" cluster.address="$head:$port" cluster.slurm=null)
everywhere=(--nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --cpus-per-task="$cpus")
# Paths of sockets must be short, and /tmp/ray may belong to another user.
export RAY_TMPDIR=/tmp/quadriga-$SLURM_JOB_ID RAY_USAGE_STATS_ENABLED=0
# Whoever can reach Ray's port can run code as this user: they need the job's token, which only this user can read.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$folder/.token-$SLURM_JOB_ID"
(umask 077 && od -An -tx1 -N32 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")

give_up_at='' background=()

ask_to_stop() {
  mkdir -p "$run_dir/requests" && echo true >"$run_dir/requests/stop.json"
}

on_time_limit() {
  give_up_at=$((SECONDS + warning - 30))
  ask_to_stop
}

await() { # Wait for a process and set $code to its exit code. Bash runs traps only between commands: hence the sleeps.
  while kill -0 "$1" 2>/dev/null; do
    sleep 1
    # A step that takes longer than the warning is lost: the run resumes from the checkpoint before it.
    if [[ $give_up_at ]] && ((SECONDS > give_up_at)); then
      give_up_at=''
      scontrol requeue "$SLURM_JOB_ID" || true
    fi
  done
  code=0 && wait "$1" || code=$?
}

clean_up() { # Ignore errors here: the job must end with the exit code of the run.
  set +e
  rm -f "$RAY_AUTH_TOKEN_PATH"
  for process in "${background[@]}"; do
    kill "$process" 2>/dev/null && await "$process"
  done
  srun "${everywhere[@]}" "${options[@]}" rm -rf "$RAY_TMPDIR"
}

run_on_whole_nodes() {
  export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=$start_seconds
  # The other nodes notice that the head has ended once Ray has not found it for a minute.
  srun "${everywhere[@]}" "${options[@]}" \
    ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" "${ray[@]}" -- "${entry[@]}" &
  await $!
}

# Other jobs run on the nodes too: ports that all nodes must know are derived from the job's number, and workers take
# any free port.
run_on_shared_nodes() {
  ray+=(--node-manager-port=$((port + 1)) --object-manager-port=$((port + 2)) --metrics-export-port=$((port + 3))
    --dashboard-agent-listen-port=$((port + 4)) --dashboard-agent-grpc-port=$((port + 5))
    --runtime-env-agent-port=$((port + 6)) --min-worker-port=0 --max-worker-port=0 --block)
  first=(--relative=0 --nodes=1 --ntasks=1 --cpus-per-task="$cpus")
  others=(--relative=1 --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1))
    --cpus-per-task="$cpus")

  srun "${first[@]}" "${options[@]}" ray start --head --node-ip-address="$head" --port="$port" \
    --ray-client-server-port=$((port + 7)) --include-dashboard=false "${ray[@]}" &
  background+=($!)
  wait_for_nodes 1
  if ((SLURM_JOB_NUM_NODES > 1)); then
    srun "${others[@]}" "${options[@]}" ray start --address="$head:$port" "${ray[@]}" &
    background+=($!)
    wait_for_nodes "$SLURM_JOB_NUM_NODES"
  fi
  srun --overlap "${first[@]}" "${options[@]}" "${entry[@]}" &
  await $!
}

wait_for_nodes() { # Wait until Ray runs on $1 nodes. Fail when it does not within $start_seconds.
  local count='import ray, sys
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
sys.exit(sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]))'
  until message=$(srun --overlap "${first[@]}" "${options[@]}" python -c "$count" "$head:$port" "$1" 2>&1); do
    if ((SECONDS > start_seconds)); then
      echo "Ray has not come up on $1 of the job's nodes in $start_seconds seconds. $message" >&2
      return 1
    fi
    sleep 2
  done
}

trap clean_up EXIT
trap on_time_limit USR1
trap ask_to_stop TERM

# Whoever owns that folder decides what Ray reads from it.
srun "${everywhere[@]}" "${options[@]}" bash -c 'mkdir -pm 700 "$0" && [[ -O $0 && ! -L $0 ]]' "$RAY_TMPDIR"

if [[ $exclusive == true ]]; then
  run_on_whole_nodes
else
  run_on_shared_nodes
fi

if [[ $give_up_at && $code -ne 0 ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
