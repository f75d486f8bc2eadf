"""`python -m msao_compile`: the same as the command `msao-compile`."""

import sys

from msao_compile.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
