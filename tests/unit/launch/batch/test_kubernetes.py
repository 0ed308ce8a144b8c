"""RayJobs for KubeRay: the fields that it requires, their types, and no secret in them."""

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.small_stages import KEY, stage
from rich.console import Console

from quadriga.data.errors import UserError
from quadriga.launch.batch.kubernetes import kubernetes_files, launch_kubernetes
from quadriga.launch.config.load import build, load_config

# Types of the written fields in KubeRay's definition of a RayJob (ray.io/v1).
CONTAINER = {
    "name": str,
    "image": str,
    "resources": {"limits": {"cpu": str, "memory": str}, "requests": {"cpu": str, "memory": str}},
    "volumeMounts": [{"name": str, "mountPath": str}],
}
POD = {"spec": {"containers": [CONTAINER], "securityContext": {"fsGroup": int}, "volumes": [{"name": str}]}}
RAY_JOB = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str},
    "spec": {
        "entrypoint": str,
        "submissionMode": str,
        "shutdownAfterJobFinishes": bool,
        "ttlSecondsAfterFinished": int,
        "backoffLimit": int,
        "runtimeEnvYAML": str,
        "rayClusterSpec": {
            "rayVersion": str,
            "authOptions": {"mode": str},
            "headGroupSpec": {"rayStartParams": {"dashboard-host": str, "num-cpus": str}, "template": POD},
            "workerGroupSpecs": [
                {
                    "groupName": str,
                    "replicas": int,
                    "minReplicas": int,
                    "maxReplicas": int,
                    "rayStartParams": {},
                    "template": POD,
                }
            ],
        },
    },
}
OPTIONAL = {"ports", "env", "readOnly", "persistentVolumeClaim", "configMap", "emptyDir", "nvidia.com/gpu", "namespace"}
WORKER = {"cpus": 32, "memory": "500Gi", "gpus": 8}


def job(run_dir: str | None = None, name: str = "sft", **kubernetes: Any) -> Any:
    raw = stage("sft", Path("/quadriga"), Path("models/base"))
    settings = {"image": "registry.example.com/quadriga:1", "claim": "shared", "worker": WORKER} | kubernetes
    return build(raw | {"name": name, "run_dir": run_dir, "cluster": {"kubernetes": settings}})


def objects(settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the ConfigMap and the RayJob."""
    (text,) = kubernetes_files(settings).values()
    config_map, ray_job = yaml.safe_load_all(text)
    return config_map, ray_job


def assert_shape(value: Any, shape: Any, at: str = "") -> None:
    """Assert that a value has every field of a shape, with its type, and no others except the optional ones."""
    if isinstance(shape, dict):
        assert isinstance(value, dict), at
        assert shape.keys() <= value.keys(), (at, value.keys())
        assert value.keys() - shape.keys() <= OPTIONAL, (at, value.keys())
        for key, below in shape.items():
            assert_shape(value[key], below, f"{at}.{key}")
    elif isinstance(shape, list):
        assert isinstance(value, list), at
        assert value, at
        for index, item in enumerate(value):
            assert_shape(item, shape[0], f"{at}[{index}]")
    else:
        assert type(value) is shape, (at, value)


def test_fields_and_their_types() -> None:
    config_map, ray_job = objects(job(environment=["WANDB_API_KEY"], environment_from="tracking"))
    assert_shape(ray_job, RAY_JOB)
    assert (ray_job["apiVersion"], ray_job["kind"]) == ("ray.io/v1", "RayJob")
    assert (config_map["apiVersion"], config_map["kind"], config_map["immutable"]) == ("v1", "ConfigMap", True)
    spec = ray_job["spec"]
    assert (spec["submissionMode"], spec["shutdownAfterJobFinishes"], spec["backoffLimit"]) == ("K8sJobMode", True, 3)
    assert isinstance(yaml.safe_load(spec["runtimeEnvYAML"]), dict)
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] == version("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"] == 1
    (worker,) = workers["template"]["spec"]["containers"]
    assert worker["resources"]["limits"] == {"cpu": "32", "memory": "500Gi", "nvidia.com/gpu": 8}
    assert worker["resources"]["requests"] == worker["resources"]["limits"]
    assert "env" not in worker
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in head["resources"]["limits"]
    assert {port["name"]: port["containerPort"] for port in head["ports"]} == {
        "gcs-server": 6379,
        "dashboard": 8265,
        "client": 10001,
    }


def test_pods_see_the_config_and_the_run_directory(tmp_path: Path) -> None:
    config_map, ray_job = objects(job("runs/first", mount="/shared"))
    cluster = ray_job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert mounts == {"shared": "/shared", "config": "/etc/quadriga", "memory": "/dev/shm"}
        assert volumes["shared"]["persistentVolumeClaim"] == {"claimName": "shared"}
        assert volumes["config"]["configMap"] == {"name": config_map["metadata"]["name"]}
    program, directory, *words = ray_job["spec"]["entrypoint"].split()
    assert (program, directory) == ("env", "--chdir=/shared")
    assert words[:5] == ["python", "-m", "quadriga.launch", "run", "/etc/quadriga/config.yaml"]
    (tmp_path / "config.yaml").write_text(config_map["data"]["config.yaml"])
    again = load_config(tmp_path / "config.yaml", words[5:])
    assert again.run_dir == "/shared/runs/first"
    assert again.cluster.address == "auto"
    assert again.cluster.kubernetes is None


def test_no_value_of_a_secret_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    (text,) = kubernetes_files(job(environment=["WANDB_API_KEY"], environment_from="tracking")).values()
    assert KEY not in text
    ray_job = list(yaml.safe_load_all(text))[1]
    (head,) = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    reference = {"secretKeyRef": {"name": "tracking", "key": "WANDB_API_KEY"}}
    assert head["env"] == [{"name": "WANDB_API_KEY", "valueFrom": reference}]


def test_variables_without_a_secret_are_refused() -> None:
    with pytest.raises(UserError, match="environment_from"):
        job(environment=["WANDB_API_KEY"])


@pytest.mark.parametrize("name", ["sft", "My_Run.v2", "a" * 80, "0" + "-" * 60 + "x"])
def test_names_are_valid_in_kubernetes(name: str) -> None:
    config_map, ray_job = objects(job(name=name))
    given = ray_job["metadata"]["name"]
    assert given == config_map["metadata"]["name"]
    assert len(given) <= 47
    assert re.fullmatch("[a-z0-9]([a-z0-9-]*[a-z0-9])?", given)


def test_the_name_of_a_job_depends_on_its_config() -> None:
    names = [objects(settings)[1]["metadata"]["name"] for settings in (job(), job(), job(nodes=2))]
    assert names[0] == names[1] != names[2]


def test_a_pod_may_have_additional_fields() -> None:
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    _, ray_job = objects(job(worker=WORKER | {"spec": {"tolerations": tolerations}}, namespace="team"))
    (workers,) = ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert workers["template"]["spec"]["tolerations"] == tolerations
    assert ray_job["metadata"]["namespace"] == "team"


def test_a_run_directory_off_the_volume_is_refused() -> None:
    with pytest.raises(UserError, match=r"`run_dir` is /tmp/run, which a pod loses"):
        kubernetes_files(job("/tmp/run"))


def test_a_dry_run_only_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch_kubernetes(job(), Console(), True, tmp_path / "job") == 0
    shown = capsys.readouterr().out
    assert "kind: RayJob" in shown
    assert "kind: ConfigMap" in shown
    assert "kubectl apply -f" in shown
    assert not (tmp_path / "job").exists()


def test_the_file_is_applied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >{tmp_path}/arguments\n')
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert launch_kubernetes(job(), Console(quiet=True), False, tmp_path / "job") == 0
    (file,) = (tmp_path / "job").iterdir()
    assert (tmp_path / "arguments").read_text().split() == ["apply", "-f", str(file)]
    assert file.read_text() == next(iter(kubernetes_files(job()).values()))


def test_a_machine_without_kubectl_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="`kubectl` is not installed"):
        launch_kubernetes(job(), Console(quiet=True), False, tmp_path)
