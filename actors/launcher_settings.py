"""Settings of the launchers that start a cluster for a run: ssh, Slurm and Kubernetes."""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from quadriga.data.settings import Settings

Port = Annotated[int, Field(ge=1, le=65535)]
EnvironmentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
BatchWord = Annotated[str, Field(pattern=r"^[^\s'\"\\#]+$")]
"""Value that needs no quotes in an `#SBATCH` line: Slurm's rules for quoting there are not the shell's."""
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=253)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$")]

MIN_PORTS = 50
"""Smallest size of `worker_ports`: seven ports for the node and one for each of its processes."""


class SshSettings(Settings):
    """Machines that the `ssh` command reaches. Ray is started on all of them for the run and ended after it."""

    hosts: list[str] = Field(min_length=1)
    """Names or addresses of the machines; the first one is Ray's head, where the driver runs too."""
    user: str | None = None
    """User to log in as; null takes the one in ~/.ssh/config, or the current user."""
    key: str | None = None
    """Path of the private key file; null takes the keys in ~/.ssh/config and of the ssh agent."""
    port: Port = 22
    """Port of the ssh server on every host."""
    options: list[str] = []
    """Additional `-o` options of ssh, for example `StrictHostKeyChecking=accept-new`."""
    python: str = "python3"
    """Python interpreter on the hosts that has Quadriga's dependencies. Quadriga itself is sent."""
    ray_port: Port = 6379
    """Port of Ray's head, which all hosts must reach."""
    dashboard_port: Port = 8265
    """Port of Ray's dashboard on the head's loopback interface; it is reached through ssh."""
    worker_ports: tuple[Port, Port] = (20000, 29999)
    """First and last of all other ports that Ray opens; the hosts must reach each other there."""
    environment: list[EnvironmentName] = []
    """Names of environment variables of the launching machine that the run needs, for example WANDB_API_KEY. Their
    values go to a file on the head that only its owner can read, never into a command line or the job's metadata."""

    @field_validator("worker_ports")
    @classmethod
    def _check_worker_ports(cls, ports: tuple[int, int]) -> tuple[int, int]:
        if ports[1] - ports[0] < MIN_PORTS:
            raise ValueError(f"give the lower port first, and at least {MIN_PORTS} of them")
        return ports

    @field_validator("hosts")
    @classmethod
    def _check_hosts(cls, hosts: list[str]) -> list[str]:
        if twice := [host for host in hosts if hosts.count(host) > 1]:
            raise ValueError(f"{twice[0]} is listed twice; one Ray node runs on a host")
        if odd := [host for host in hosts if not host or host.startswith("-") or any(c.isspace() for c in host)]:
            raise ValueError(f"{odd[0]!r} is not a valid host name")
        return hosts


class SlurmSettings(Settings):
    """Slurm job with one Ray node on each of its equal nodes, which all see the storage of the run directory."""

    nodes: int = Field(1, ge=1)
    """Number of nodes of the job."""
    cpus: int = Field(ge=1)
    """CPU cores per node."""
    gpus: int = Field(0, ge=0)
    """GPUs per node."""
    exclusive: bool = True
    """Whether the job gets whole nodes. false shares them with other jobs, on ports derived from the job's number."""
    partition: BatchWord | None = None
    """Partition of the job; null takes the cluster's default."""
    account: BatchWord | None = None
    """Account that is charged for the job; null takes the user's default."""
    time: BatchWord | None = None
    """Time limit of one attempt, in Slurm's format (`1-00:00:00`); null takes the partition's limit."""
    warning: int = Field(300, ge=60)
    """Seconds before the time limit at which the run saves and stops; the job is then requeued and the run resumed."""
    options: list[BatchWord] = []
    """Additional options of sbatch, for example `--gres=gpu:h100:8`."""
    srun_options: list[str] = []
    """Additional options of srun, for example `--container-image=/images/quadriga.sqsh`."""
    setup: list[str] = []
    """Shell lines that run first and put `ray` and `python` on the PATH, for example `module load cuda` and
    `source /shared/venv/bin/activate`. An empty list takes those of the launching Python."""


class PodSettings(Settings):
    """Resources of one pod, both as its limits and as its requests."""

    cpus: int = Field(ge=1)
    """CPU cores of the pod."""
    memory: Quantity
    """Memory of the pod in Kubernetes notation (`64Gi`), including Ray's object store in /dev/shm."""
    gpus: int = Field(0, ge=0)
    """GPUs of the pod, as the resource `nvidia.com/gpu`."""
    spec: dict[str, Any] = {}
    """Additional fields of the pod's spec, for example `nodeSelector`, `tolerations` or `imagePullSecrets`."""


class KubernetesSettings(Settings):
    """RayJob of KubeRay 1.5.1 or newer: a head pod for the driver, and equal worker pods for all other processes."""

    image: str = Field(min_length=1)
    """Container image of all pods, built from Quadriga's Dockerfile."""
    claim: ObjectName
    """Name of the PersistentVolumeClaim (ReadWriteMany) for models, data and run directories."""
    mount: str = Field("/quadriga", pattern=r"^(/[\w.-]+)+$")
    """Path of the claim in the pods; relative paths of the config start there."""
    nodes: int = Field(1, ge=1)
    """Number of worker pods."""
    worker: PodSettings
    """Resources of each worker pod."""
    head: PodSettings = PodSettings(cpus=4, memory="16Gi")
    """Resources of the head pod."""
    namespace: ObjectName | None = None
    """Kubernetes namespace of the job; null takes kubectl's default."""
    retries: int = Field(3, ge=0)
    """Number of restarts after failures, each on a new Ray cluster; the run resumes from its newest checkpoint."""
    kept: int = Field(3600, ge=0)
    """Seconds for which a job that has ended is kept, together with its log."""
    environment: list[EnvironmentName] = []
    """Names of environment variables that the run needs (WANDB_API_KEY): keys of the Secret in `environment_from`."""
    environment_from: ObjectName | None = None
    """Kubernetes Secret with the values of `environment`, which are never written to a file; null for none."""

    @model_validator(mode="after")
    def _check_environment(self) -> "KubernetesSettings":
        if bool(self.environment) != bool(self.environment_from):
            raise ValueError("give `environment` and the Secret it comes from, `environment_from`, or neither of them")
        return self
