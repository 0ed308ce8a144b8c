"""How a cluster is brought up for a run: settings of the launchers (ssh, Slurm, Kubernetes)."""

from typing import Annotated

from pydantic import Field, field_validator

from quadriga.data.settings import Settings

Port = Annotated[int, Field(ge=1, le=65535)]
EnvironmentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


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
