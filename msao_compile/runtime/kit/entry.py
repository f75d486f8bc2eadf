"""Build this kit's engines on this device: `python3 kit.py`, again after anything went wrong; `--help` says more."""

# Parsed by whatever Python a device has, from 3.6 on, so that what is missing can be said in a sentence.

import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

OLDEST = (3, 10)
MISSING = 4


def tell(line: str) -> None:
    """A line for whoever listens; where the connection is gone, the work goes on without."""
    with suppress(BrokenPipeError):
        print(line, flush=True)


def lacks() -> str:
    """What this Python lacks to run a kit, as a sentence; empty where nothing."""
    if sys.version_info < OLDEST:
        return (
            "kit.py needs Python {}.{} or newer, and {} is {}.{}: "
            "run it by a newer one that has NumPy and the engine library"
        ).format(*OLDEST, sys.executable, *sys.version_info[:2])
    if find_spec("numpy") is None:
        return f"kit.py needs NumPy, which {sys.executable} does not have: install it for this Python"
    return ""


if __name__ == "__main__":
    lack = lacks()
    if lack:
        tell("error: " + lack)
        sys.exit(MISSING)
    sys.dont_write_bytecode = True
    folder = Path(__file__).resolve().parent
    sys.path.insert(0, str(folder))
    from msao_compile.runtime.kit.main import main

    sys.exit(main(folder, sys.argv[1:], tell))
