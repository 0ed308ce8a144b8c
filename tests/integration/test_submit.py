"""A run sent to a real Ray head without Quadriga: it outlives its client, is found again, stopped and sent again."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from helpers.cut_proxy import cut_proxy
from helpers.ray_head import Head, ray_head
from helpers.recipes import write_recipes
from helpers.small_stages import CLUSTER, KEY, rankings, stage

from quadriga.data.rundir import RunDir
from quadriga.orchestrator.tracking.tracker import read_metrics

pytestmark = pytest.mark.integration

TOKEN = "decade00" * 8
"""Of the cluster."""
FOLLOWING = ("logs", "sft", "--follow")
WAIT_SECONDS = 240


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head(TOKEN) as head:
        yield head


@dataclass
class Story:
    """What was seen, in the order of the tests below."""

    run_dir: RunDir
    drivers: list[str]
    """Who held the run directory: before the client was killed, after, and of the second attempt."""
    steps: list[int]
    """Steps in metrics.jsonl: before the client was killed, after, when it was stopped, at the end."""
    refused: "subprocess.CompletedProcess[str]"
    stopped: "subprocess.CompletedProcess[str]"
    left: "subprocess.CompletedProcess[str]"
    cuts: int
    """Connections of the client that attached again that were cut."""
    attached: tuple[int, str]
    """Its exit code, and what it showed."""
    whole_log: str
    again: "subprocess.CompletedProcess[str]"
    seen: str
    """All that the cluster tells about its jobs."""
    table: str


@pytest.fixture(scope="module")
def story(head: Head, made_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("submitted")
    config, secrets = folder / "sft.yaml", folder / "secrets"
    config.write_text(yaml.safe_dump(stage("sft", folder, made_model)))
    secrets.write_text(f"WANDB_API_KEY={KEY}\n")
    secrets.chmod(0o600)
    run_dir = RunDir(folder / "run")
    options = ["tracking.wandb=false", "--secret=WANDB_API_KEY", f"--secrets-file={secrets}"]
    endless = ["submit", str(config), "total_steps=100000", *options]

    client = start(head, *endless)
    wait_for(lambda: steps(run_dir) > 0, "a step", client)
    drivers, counts = [driver(run_dir)], [steps(run_dir)]
    client.kill()
    client.wait()
    wait_for(lambda: steps(run_dir) > counts[0], "a step without the client")
    drivers.append(driver(run_dir))
    counts.append(steps(run_dir))

    leaving, second = start(head, *FOLLOWING), start(head, *endless)
    with cut_proxy(head.port) as proxy, (folder / "attached.log").open("w+") as log:
        attached = start(Head(proxy.port), *FOLLOWING, out=log)
        wait_for(lambda: os.fstat(log.fileno()).st_size > 0, "the log after attaching")
        cuts = proxy.cut()
        assert leaving.stdout is not None and leaving.stdout.readline()
        leaving.send_signal(signal.SIGINT)
        left, refused = finish(leaving), finish(second)
        stopped = finish(start(head, "stop", "sft"))
        counts.append(steps(run_dir))
        attached.wait(WAIT_SECONDS)
        reattached = Path(log.name).read_text()
    whole_log = finish(start(head, "logs", "sft")).stdout

    last = f"total_steps={counts[-1] + 2}"
    again = finish(start(head, "submit", str(config), last, *options, "--allow-changed", "total_steps"))
    drivers.append(driver(run_dir))
    counts.append(steps(run_dir))
    return Story(
        run_dir=run_dir,
        drivers=drivers,
        steps=counts,
        refused=refused,
        stopped=stopped,
        left=left,
        cuts=cuts,
        attached=(attached.returncode, reattached),
        whole_log=whole_log,
        again=again,
        seen=everything_known(head),
        table=finish(start(head, "jobs")).stdout,
    )


def start(
    head: Head, *words: str, out: Any = subprocess.PIPE, folder: Path | None = None, **variables: str
) -> "subprocess.Popen[str]":
    """A quadriga command on this machine, which is not the cluster's. out: where its output goes."""
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "COLUMNS": "200"} | variables
    command = [sys.executable, "-m", "quadriga.launch", *words, "--address", head.address]
    # What starts tests in the background may have them ignore Ctrl-C, which a child would inherit.
    ctrl_c = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    return subprocess.Popen(
        command, env=environment, cwd=folder, stdout=out, stderr=subprocess.PIPE, text=True, preexec_fn=ctrl_c
    )


def finish(process: "subprocess.Popen[str]") -> "subprocess.CompletedProcess[str]":
    """Wait for its end."""
    out, err = process.communicate(timeout=WAIT_SECONDS)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_for(true: Callable[[], bool], what: str, process: "subprocess.Popen[str] | None" = None) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not true():
        ended = process is not None and process.poll() is not None
        assert not ended and time.monotonic() < deadline, (what, process and process.communicate())
        time.sleep(0.1)


def steps(run_dir: RunDir) -> int:
    """Steps that were logged."""
    return len(read_metrics(run_dir.metrics_path)) if run_dir.metrics_path.exists() else 0


def driver(run_dir: RunDir) -> str:
    """`process <pid> on <node>`."""
    return (run_dir.path / ".lock").read_text()


def everything_known(head: Head) -> str:
    """Jobs, their runtime environments and their logs, as the job server tells them to anyone who has the token."""

    def get(path: str) -> str:
        answer = requests.get(
            f"{head.address}/api/jobs/{path}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60
        )
        answer.raise_for_status()
        return answer.text

    jobs = get("")
    names = [job["submission_id"] for job in json.loads(jobs) if job["submission_id"]]
    return "\n".join([jobs, *(get(f"{name}/logs") for name in names)])


def test_the_run_outlives_its_client(story: Story) -> None:
    before, after, _ = story.drivers
    assert before == after and re.fullmatch(r"process \d+ on \S+", before)
    assert story.steps[1] > story.steps[0] > 0


def test_one_run_of_a_name_at_a_time(story: Story) -> None:
    assert story.refused.returncode == 2
    assert "The run `sft` is running as job sft-1: stop it with `quadriga stop sft`" in story.refused.stderr


def test_ctrl_c_only_ends_following(story: Story) -> None:
    assert story.left.returncode == 130 and "Traceback" not in story.left.stderr
    assert "The run continues. Follow it again with: quadriga logs sft --address http://127." in story.left.stderr


def test_a_stop_saves_first(story: Story) -> None:
    assert story.stopped.returncode == 0, story.stopped.stderr
    assert "sft is interrupted. Submit it again to resume." in story.stopped.stderr
    first = story.run_dir.read_run()["attempts"][0]
    assert first["status"] == "interrupted" and first["error"] is None


def test_the_log_is_whole_though_the_connection_broke(story: Story) -> None:
    assert story.cuts > 0
    code, text = story.attached
    assert code == 130 and text == story.whole_log
    assert "sft: starting processes" in text


def test_submitted_again_it_goes_on_and_finishes(story: Story) -> None:
    assert story.again.returncode == 0, story.again.stdout + story.again.stderr
    attempts = story.run_dir.read_run()["attempts"]
    assert [attempt["status"] for attempt in attempts] == ["interrupted", "finished"]
    assert attempts[1]["versions"]["quadriga"] == attempts[0]["versions"]["quadriga"] != ""
    assert story.steps[3] == story.steps[2] + 2
    assert [row["global_step"] for row in read_metrics(story.run_dir.metrics_path)] == list(
        range(1, story.steps[3] + 1)
    )
    assert story.drivers[2] != story.drivers[0]
    assert list(story.run_dir.export_dir.rglob("*.safetensors"))


def test_the_jobs_are_listed(story: Story) -> None:
    rows = re.findall(r"sft\W+(sft-\d)\W+(\w+)", story.table)
    assert rows == [("sft-1", "interrupted"), ("sft-2", "finished")]


def test_the_inputs_came_from_this_machine(story: Story) -> None:
    config = yaml.safe_load(story.run_dir.config_path.read_text())
    assert re.fullmatch(r".*/inputs/\w{8}/rows.jsonl", config["data"]["train"][0]["path"])
    assert config["cluster"]["address"] == "auto"


def test_no_secret_is_anywhere(story: Story) -> None:
    jobs: list[dict[str, Any]] = json.loads(story.seen.splitlines()[0])
    assert {job["submission_id"] for job in jobs if job["submission_id"]} >= {"sft-1", "sft-2"}
    assert "--secret=WANDB_API_KEY" in story.seen
    files = [file for file in story.run_dir.path.rglob("*") if file.is_file()]
    assert len(files) > 10
    for secret in (KEY, TOKEN):
        assert secret not in story.seen + story.whole_log + story.again.stdout
        assert not [file for file in files if secret.encode() in file.read_bytes()]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "requires a token: set RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_TOKEN": "another"}, "rejects the given token: set RAY_AUTH_MODE=token"),
    ],
)
def test_without_the_token(head: Head, variables: dict[str, str], said: str) -> None:
    done = finish(start(head, "jobs", **variables))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert said in " ".join(done.stderr.split())


def test_a_user_s_modules_travel_with_the_job(head: Head, made_model: Path, tmp_path: Path) -> None:
    """A stage from --working-dir: its trainer in the driver, its loss in a model worker of the cluster."""
    modules = tmp_path / "modules"
    write_recipes(modules, "toy_dpo/spec.py", "toy_dpo/trainer.py", "dpo.yaml")
    config = yaml.safe_load((modules / "dpo.yaml").read_text()) | {
        "model": {"path": str(made_model)},
        "data": {"train": rankings(tmp_path / "rankings.jsonl"), "max_tokens": 64},
        "run_dir": str(tmp_path / "run"),
        "total_steps": 1,
        "cluster": CLUSTER,
    }
    (tmp_path / "dpo.yaml").write_text(yaml.safe_dump(config))
    words = ["submit", str(tmp_path / "dpo.yaml"), "tracking.wandb=false", "--working-dir", "."]
    done = finish(start(head, *words, folder=modules))
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunDir(tmp_path / "run")
    (row,) = read_metrics(run.metrics_path)
    assert row["train/loss"] == pytest.approx(math.log(2), abs=1e-5)  # policy and reference are the same
    assert {name.split()[0] for name in run.read_run()["processes"]} == {"actor", "reference"}
