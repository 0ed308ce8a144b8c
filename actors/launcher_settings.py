"""How a cluster is brought up for a run: settings of the launchers (ssh, Slurm, Kubernetes)."""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from quadriga.data.settings import Settings

Port = Annotated[int, Field(ge=1, le=65535)]
EnvironmentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
BatchWord = Annotated[str, Field(pattern=r"^[^\s'\"\\#]+$")]
"""What may stand in an `#SBATCH` line as it is: Slurm's rules for quoting there are not the shell's."""
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=253)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$")]


FEWEST_PORTS = 50
"""Seven for the node, and one for each of its processes."""


class SshSettings(Settings):
    """Machines that the `ssh` command reaches. Ray is started on all of them and ended again with the run."""

    hosts: list[str] = Field(min_length=1)
    """Names or addresses; the first is Ray's head, where the driver runs too."""
    user: str | None = None
    """null: as ~/.ssh/config says."""
    key: str | None = None
    """Private key file; null: as ~/.ssh/config says, or the agent's."""
    port: Port = 22
    options: list[str] = []
    """More `-o` options of ssh, for example `StrictHostKeyChecking=accept-new`."""
    python: str = "python3"
    """Interpreter on the hosts that has Quadriga's dependencies. Quadriga itself is sent."""
    ray_port: Port = 6379
    dashboard_port: Port = 8265
    """On the head's loopback; it is reached through ssh."""
    worker_ports: tuple[Port, Port] = (20000, 29999)
    """Range of every other port that Ray opens; hosts must reach each other there."""
    environment: list[EnvironmentName] = []
    """Variables of the launching machine that the run shall have, by name (WANDB_API_KEY). Their values go to a file on
    the head that only its owner reads, never into a command line or the job's metadata."""

    @field_validator("worker_ports")
    @classmethod
    def _room_for_workers(cls, ports: tuple[int, int]) -> tuple[int, int]:
        if ports[1] - ports[0] < FEWEST_PORTS:
            raise ValueError(f"give the lower port first, and at least {FEWEST_PORTS} of them")
        return ports

    @field_validator("hosts")
    @classmethod
    def _hosts_differ(cls, hosts: list[str]) -> list[str]:
        if twice := [host for host in hosts if hosts.count(host) > 1]:
            raise ValueError(f"{twice[0]} is listed twice; one Ray node runs on a host")
        if odd := [host for host in hosts if not host or host.startswith("-") or any(c.isspace() for c in host)]:
            raise ValueError(f"{odd[0]!r} is no host name")
        return hosts


class SlurmSettings(Settings):
    """A job of so many equal nodes, one Ray node on each. The run directory must be on storage that all of them see."""

    nodes: int = Field(1, ge=1)
    cpus: int = Field(ge=1)
    """CPU cores of a node."""
    gpus: int = Field(0, ge=0)
    """GPUs of a node."""
    exclusive: bool = True
    """Whole nodes; false shares them with other jobs, on ports that follow from the job's number."""
    partition: BatchWord | None = None
    account: BatchWord | None = None
    time: BatchWord | None = None
    """Limit of one stay in the cluster, in Slurm's format (`1-00:00:00`); null: the partition's."""
    warning: int = Field(300, ge=60)
    """Seconds before that limit at which the run is asked to save and stop; it is queued again and goes on."""
    options: list[BatchWord] = []
    """More options of sbatch, for example `--gres=gpu:h100:8`."""
    srun_options: list[str] = []
    """More options of srun, for example a container's: `--container-image=/images/quadriga.sqsh`."""
    setup: list[str] = []
    """Shell lines that run first (`module load cuda`, `source /shared/venv/bin/activate`) and put `ray` and `python` on
    the PATH; without any, those of the Python that launches."""


class PodSettings(Settings):
    """What one pod gets, as its limits and its requests."""

    cpus: int = Field(ge=1)
    memory: Quantity
    """In Kubernetes notation (`64Gi`). Ray's object store, in /dev/shm, is a part of it."""
    gpus: int = Field(0, ge=0)
    """Of `nvidia.com/gpu`."""
    spec: dict[str, Any] = {}
    """More fields of the pod's spec: `nodeSelector`, `tolerations`, `imagePullSecrets`."""


class KubernetesSettings(Settings):
    """A RayJob of KubeRay 1.5.1 or newer: a head pod with the driver, and equal worker pods with everything else."""

    image: str = Field(min_length=1)
    """Made from Quadriga's Dockerfile."""
    claim: ObjectName
    """PersistentVolumeClaim (ReadWriteMany) for models, data and run directories."""
    mount: str = Field("/quadriga", pattern=r"^(/[\w.-]+)+$")
    """Where the claim is in the pods, and what relative paths of the config start from."""
    nodes: int = Field(1, ge=1)
    """Worker pods."""
    worker: PodSettings
    head: PodSettings = PodSettings(cpus=4, memory="16Gi")
    namespace: ObjectName | None = None
    """null: kubectl's own."""
    retries: int = Field(3, ge=0)
    """How often a job that failed is started anew, on a new Ray cluster; the run goes on from its checkpoints."""
    kept: int = Field(3600, ge=0)
    """Seconds for which a job that has ended is kept, with its log."""
    environment: list[EnvironmentName] = []
    """Variables that the run shall have, by name (WANDB_API_KEY): entries of the same name in `environment_from`."""
    environment_from: ObjectName | None = None
    """The Kubernetes Secret that holds them. No value is ever written to a file."""

    @model_validator(mode="after")
    def _has_a_source(self) -> "KubernetesSettings":
        if bool(self.environment) != bool(self.environment_from):
            raise ValueError("give `environment` and the Secret it comes from, `environment_from`, or neither of them")
        return self
