"""A run as a RayJob of KubeRay: a Ray cluster of pods for it alone, and the run again when one fails."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from quadriga.actors.launcher_settings import KubernetesSettings, PodSettings
from quadriga.data.errors import UserError
from quadriga.launch.batch.submission import config_text, fingerprint, job_name, run_dir, submit

CONFIG = "/etc/quadriga"
"""Folder of config.yaml in the pods."""
LONGEST_NAME = 47
"""Of a RayJob: KubeRay refuses longer ones."""
PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
IMAGE_GROUP = 1000
"""Group of the user in our Dockerfile, to whom volumes are given."""


def kubernetes_files(stage: Any) -> dict[str, str]:
    """File name -> text: one YAML file with a ConfigMap, which holds the resolved config, and the RayJob.

    The names of both objects hold a fingerprint: applying another config leaves a job that runs alone, applying the
    same one again changes nothing. Raises UserError when the run directory is not on the shared volume.
    """
    settings: KubernetesSettings = stage.cluster.kubernetes
    where = Path(settings.mount) / run_dir(stage)
    if not where.is_relative_to(settings.mount):
        raise UserError(
            f"`run_dir` is {where}, which a pod loses when it ends: choose one below `cluster.kubernetes.mount` "
            f"({settings.mount}), where the shared volume is; a relative one starts there."
        )
    config = config_text(stage, where)
    mark = fingerprint(config)
    name = f"{job_name(stage, LONGEST_NAME - len(mark) - 1)}-{mark}"
    place = {"namespace": settings.namespace} if settings.namespace else {}
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name} | place,
        "immutable": True,
        "data": {"config.yaml": config},
    }
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name} | place,
        "spec": {
            "submissionMode": "K8sJobMode",
            "entrypoint": f"env --chdir={settings.mount} python -m quadriga.launch run {CONFIG}/config.yaml "
            "cluster.address=auto cluster.kubernetes=null",
            "runtimeEnvYAML": 'env_vars: {PYTHONUNBUFFERED: "1"}\n',
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": settings.kept,
            "backoffLimit": settings.retries,
            "rayClusterSpec": _cluster(settings, name),
        },
    }
    documents = yaml.safe_dump_all([config_map, job], sort_keys=False, allow_unicode=True, width=120)
    return {f"{name}.yaml": documents}


def launch_kubernetes(stage: Any, console: Console, dry_run: bool, folder: Path) -> int:
    """Write the YAML file into `folder` and apply it with kubectl; returns the exit code.

    dry_run: print both instead. Raises UserError when kubectl is missing or fails.
    """
    files = kubernetes_files(stage)
    command = ["kubectl", "apply", "-f", str(folder.absolute() / next(iter(files)))]
    return submit(console, files, folder, command, dry_run, "Install it, and give it access to the Kubernetes cluster")


def _cluster(settings: KubernetesSettings, name: str) -> dict[str, Any]:
    """The driver has the head to itself. Ray's ports ask for a token, which KubeRay makes and gives to all pods."""
    head = _container("ray-head", settings, settings.head)
    head["ports"] = [{"containerPort": port, "name": port_name} for port_name, port in PORTS.items()]
    if settings.environment:
        head["env"] = [
            {"name": key, "valueFrom": {"secretKeyRef": {"name": settings.environment_from, "key": key}}}
            for key in settings.environment
        ]
    worker = _container("ray-worker", settings, settings.worker)
    return {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            # KubeRay and the readiness probes reach the dashboard from outside of the pod.
            "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0"},
            "template": {"spec": _pod(settings, settings.head, head, name)},
        },
        "workerGroupSpecs": [
            {
                "groupName": "worker",
                "replicas": settings.nodes,
                "minReplicas": settings.nodes,
                "maxReplicas": settings.nodes,
                "rayStartParams": {},
                "template": {"spec": _pod(settings, settings.worker, worker, name)},
            }
        ],
    }


def _container(name: str, settings: KubernetesSettings, pod: PodSettings) -> dict[str, Any]:
    resources = {"cpu": str(pod.cpus), "memory": pod.memory} | ({"nvidia.com/gpu": pod.gpus} if pod.gpus else {})
    return {
        "name": name,
        "image": settings.image,
        "resources": {"limits": resources, "requests": dict(resources)},
        "volumeMounts": [
            {"name": "shared", "mountPath": settings.mount},
            {"name": "config", "mountPath": CONFIG, "readOnly": True},
            {"name": "memory", "mountPath": "/dev/shm"},
        ],
    }


def _pod(settings: KubernetesSettings, pod: PodSettings, container: dict[str, Any], name: str) -> dict[str, Any]:
    return {
        "containers": [container],
        "securityContext": {"fsGroup": IMAGE_GROUP},
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": settings.claim}},
            {"name": "config", "configMap": {"name": name}},
            # Ray's object store; the 64 MB that a container has by itself would send it to disk.
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
        ],
    } | pod.spec
