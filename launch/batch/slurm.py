"""Slurm jobs: one Ray node per node of the job, a clean stop before the time limit, and a requeue to resume."""

import shlex
import sys
from pathlib import Path

from rich.console import Console

from quadriga.actors.launcher_settings import SlurmSettings
from quadriga.launch.batch.submission import config_text, fingerprint, job_name, run_dir, submit
from quadriga.orchestrator.stages.registry import AnyStage

SCRIPT = Path(__file__).with_name("job.sh")
"""Body of the job's script. It needs the variables that `slurm_files` sets above it."""


def slurm_files(stage: AnyStage, folder: Path) -> dict[str, str]:
    """Return the text per file name: of the resolved config and of the sbatch script, which expects both in `folder`.

    The names hold a fingerprint of the content, so that launching another config never changes a queued job's files.
    """
    settings = stage.cluster.slurm
    assert settings is not None
    where = run_dir(stage).absolute()
    config = config_text(stage, where)
    config_name = f"config-{fingerprint(config)}.yaml"
    setup = settings.setup or [f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"']
    ray = [f"--num-cpus={settings.cpus}", f"--num-gpus={settings.gpus}"]
    values = {
        "folder": shlex.quote(str(folder.absolute())),
        "config": shlex.quote(str(folder.absolute() / config_name)),
        "run_dir": shlex.quote(str(where)),
        "exclusive": "true" if settings.exclusive else "false",
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
            "",
            SCRIPT.read_text(encoding="utf-8"),
        ]
    )
    return {config_name: config, f"job-{fingerprint(script)}.sh": script}


def launch_slurm(stage: AnyStage, console: Console, dry_run: bool, folder: Path) -> int:
    """Write the job's files into `folder`, on storage that all nodes see, submit the job and return the exit code.

    dry_run: print the files and the command instead. Relative paths in the config start at the current directory, in
    the job too. Raises UserError when sbatch is missing or refuses the job.
    """
    files = slurm_files(stage, folder)
    log = str(folder.absolute()).replace("%", "%%") + "/%j.log"
    script = folder.absolute() / next(name for name in files if name.endswith(".sh"))
    command = ["sbatch", f"--chdir={Path.cwd()}", f"--output={log}", str(script)]
    return submit(console, files, folder, command, dry_run, "Launch on a login node of the Slurm cluster")


def _sbatch_options(stage: AnyStage, settings: SlurmSettings) -> list[str]:
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
        # B: signal the script alone. A signal to every process would end Ray before the run could save.
        f"--signal=B:USR1@{settings.warning}",
        *settings.options,
    ]
