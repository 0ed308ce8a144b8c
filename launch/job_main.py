"""Entry point of a job: copies the files that it brought to a folder that every node sees, then runs its config.

In the job's working directory: `python -m quadriga.launch.job_main RUN_DIR [OPTION OF quadriga run]...`
"""

import shutil
import sys
from pathlib import Path

from quadriga.data.errors import UserError
from quadriga.data.rundir import RunDir
from quadriga.launch.cli.app import failed, main
from quadriga.launch.jobs.package import CONFIG, INPUTS, inputs_of


def install_inputs(run_dir: str) -> None:
    """Copy the job's input files into the run directory. Raises UserError when it cannot be written."""
    inputs = Path(INPUTS)
    if inputs.is_dir():
        target = inputs_of(RunDir.create(run_dir).path)
        shutil.copytree(inputs, target, dirs_exist_ok=True)


if __name__ == "__main__":
    try:
        install_inputs(sys.argv[1])
    except UserError as error:
        sys.exit(failed("Error", str(error), 2))
    sys.exit(main(["run", CONFIG, *sys.argv[2:]]))
