"""Build this kit's engines on this device: `python3 kit.py`, again after anything went wrong; `--help` says more."""

import sys
from contextlib import suppress
from pathlib import Path


def tell(line: str) -> None:
    """A line for whoever listens; where the connection is gone, the work goes on without."""
    with suppress(BrokenPipeError):
        print(line, flush=True)


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    folder = Path(__file__).resolve().parent
    sys.path.insert(0, str(folder))
    from msao_compile.runtime.kit.main import main

    sys.exit(main(folder, sys.argv[1:], tell))
