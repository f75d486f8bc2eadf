"""Writes a set of pictures and questions: `python -m calibration.shapes --set heldout --count 2000 --out DIR`."""

import argparse
from pathlib import Path

from calibration.shapes.dataset import SEEDS, samples, write


def main() -> None:
    """Parses the command line, writes the set, says how large it is."""
    parser = argparse.ArgumentParser(prog="python -m calibration.shapes", description=__doc__)
    parser.add_argument("--set", choices=list(SEEDS), required=True, help="which range of seeds to draw from")
    parser.add_argument("--count", type=int, required=True, help="how many questions")
    parser.add_argument("--out", type=Path, required=True, help="folder for questions.jsonl and the PNG files")
    arguments = parser.parse_args()
    written = write(samples(arguments.set, arguments.count), arguments.out)
    print(f"wrote {written} questions to {arguments.out}")


if __name__ == "__main__":
    main()
