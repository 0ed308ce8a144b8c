"""What a job does first: it puts the files that it brought where every node sees them, then runs its config.

In the job's working directory: `python -m quadriga.launch.job_main RUN_DIR [OPTION OF quadriga run]...`
"""

import shutil
import sys
from pathlib import Path

from quadriga.data.errors import UserError
from quadriga.data.rundir import RunDir
from quadriga.launch.cli.app import failed, main
from quadriga.launch.jobs.package import CONFIG, INPUTS, inputs_of


def unpack(run_dir: str) -> None:
    """Copy the files that came along into the run directory. Raises UserError when it cannot be written."""
    brought = Path(INPUTS)
    if brought.is_dir():
        target = inputs_of(RunDir.create(run_dir).path)
        shutil.copytree(brought, target, dirs_exist_ok=True)


if __name__ == "__main__":
    try:
        unpack(sys.argv[1])
    except UserError as error:
        sys.exit(failed("Error", str(error), 2))
    sys.exit(main(["run", CONFIG, *sys.argv[2:]]))
