"""Measures both models: `python -m calibration.evaluate`.

On the held-out set it writes `evaluation.json` and the tables of the README; on the validation set it only prints.
"""

import argparse
import json
from pathlib import Path

import torch

from calibration.evaluate.measure import measure
from calibration.evaluate.report import insert, tables

CALIBRATION = Path(__file__).resolve().parent.parent


def main() -> None:
    """Parses the command line, measures, writes both files."""
    parser = argparse.ArgumentParser(prog="python -m calibration.evaluate", description=__doc__)
    parser.add_argument("--models", type=Path, default=CALIBRATION / "models")
    parser.add_argument("--set", choices=("validation", "heldout"), default="heldout")
    parser.add_argument("--count", type=int, default=2400, help="how many questions")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measure(arguments.models, arguments.set, arguments.count, print)
    text = tables(result)
    if arguments.set != "heldout":
        print(text)
        return
    (CALIBRATION / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    insert(CALIBRATION / "README.md", text)
    print(f"wrote {CALIBRATION / 'evaluation.json'} and the tables in {CALIBRATION / 'README.md'}")


if __name__ == "__main__":
    main()
