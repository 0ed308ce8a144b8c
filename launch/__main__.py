"""`python -m quadriga.launch`: the command line where no console script is installed, as in a Ray job."""

import sys

from quadriga.launch.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
