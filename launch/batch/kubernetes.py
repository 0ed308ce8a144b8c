"""Kubernetes jobs: a run as a RayJob of KubeRay, on its own Ray cluster of pods, with retries after failures."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from quadriga.actors.launcher_settings import KubernetesSettings, PodSettings
from quadriga.data.errors import UserError
from quadriga.launch.batch.submission import config_text, fingerprint, job_name, run_dir, submit
from quadriga.orchestrator.stages.registry import AnyStage

CONFIG = "/etc/quadriga"
"""Folder of config.yaml in the pods."""
MAX_NAME_LENGTH = 47
"""Longest name of a RayJob that KubeRay accepts."""
PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
IMAGE_GROUP = 1000
"""Group of the user in Quadriga's Dockerfile, which owns the volumes."""


def kubernetes_files(stage: AnyStage) -> dict[str, str]:
    """Return the text per file name: one YAML file with a ConfigMap of the resolved config and the RayJob.

    The names of both objects hold a fingerprint, so that applying another config never changes a running job, and
    applying the same one again has no effect. Raises UserError when the run directory is not on the shared volume.
    """
    settings = stage.cluster.kubernetes
    assert settings is not None
    where = Path(settings.mount) / run_dir(stage)
    if not where.is_relative_to(settings.mount):
        raise UserError(
            f"`run_dir` is {where}, which a pod loses when it ends: choose one below `cluster.kubernetes.mount` "
            f"({settings.mount}), the shared volume; a relative path starts there."
        )
    config = config_text(stage, where)
    mark = fingerprint(config)
    name = f"{job_name(stage, MAX_NAME_LENGTH - len(mark) - 1)}-{mark}"
    namespace = {"namespace": settings.namespace} if settings.namespace else {}
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name} | namespace,
        "immutable": True,
        "data": {"config.yaml": config},
    }
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name} | namespace,
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


def launch_kubernetes(stage: AnyStage, console: Console, dry_run: bool, folder: Path) -> int:
    """Write the YAML file into `folder`, apply it with kubectl and return the exit code.

    dry_run: print the file and the command instead. Raises UserError when kubectl is missing or fails.
    """
    files = kubernetes_files(stage)
    command = ["kubectl", "apply", "-f", str(folder.absolute() / next(iter(files)))]
    return submit(console, files, folder, command, dry_run, "Install it, and give it access to the Kubernetes cluster")


def _cluster(settings: KubernetesSettings, name: str) -> dict[str, Any]:
    """Return the Ray cluster's spec. Only the driver runs on the head. KubeRay creates the token for Ray's ports."""
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
            # KubeRay and the readiness probes reach the dashboard from outside the pod.
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
            # For Ray's object store: with a container's default of 64 MB it would use the disk.
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
        ],
    } | pod.spec
