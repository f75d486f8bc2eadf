"""Samples by split: every split owns its own range of seeds, and a sample follows from its seed alone."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal, TypeAlias

from PIL import Image

from calibration.shapes.questions import FEWEST_THINGS, KINDS, VISION_KINDS, ask
from calibration.shapes.render import picture
from calibration.shapes.scene import draw_scene

Split: TypeAlias = Literal["train", "fit", "validation", "heldout"]

SEEDS: dict[Split, range] = {
    "train": range(100_000_000),
    "fit": range(100_000_000, 101_000_000),
    "validation": range(101_000_000, 102_000_000),
    "heldout": range(102_000_000, 103_000_000),
}


@dataclass(frozen=True)
class Sample:
    """One question about one picture; `needs_picture` says whether the answer is in the picture."""

    id: str
    kind: str
    question: str
    answer: str
    needs_picture: bool
    seed: int
    image: Image.Image


def samples(split: Split, count: int) -> Iterator[Sample]:
    """The first `count` samples of a split, kinds in turn, each with a picture of its own.

    Raises:
        ValueError: the split has fewer than `count` seeds.
    """
    seeds = SEEDS[split]
    if count > len(seeds):
        raise ValueError(f"split {split!r} has {len(seeds)} seeds, {count} samples were asked for: ask for fewer")
    for index in range(count):
        yield sample(split, seeds[index], KINDS[index % len(KINDS)])


def sample(split: Split, seed: int, kind: str) -> Sample:
    """The sample of one kind that a seed of the split stands for.

    Raises:
        ValueError: the seed belongs to another split.
    """
    if seed not in SEEDS[split]:
        raise ValueError(f"seed {seed} is outside split {split!r} ({SEEDS[split]}): take one from SEEDS[{split!r}]")
    rng = Random(seed)
    scene = draw_scene(rng, FEWEST_THINGS.get(kind, 1))
    question, answer = ask(kind, scene, rng)
    return Sample(f"{split}-{seed}-{kind}", kind, question, answer, kind in VISION_KINDS, seed, picture(scene))


def write(rows: Iterator[Sample], folder: Path) -> int:
    """Writes one PNG a sample and `questions.jsonl` into the folder; returns how many samples were written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    with (folder / "questions.jsonl").open("w", encoding="utf-8") as lines:
        for row in rows:
            name = f"{row.id}.png"
            row.image.save(folder / name, optimize=True)
            lines.write(json.dumps(row_of(row, name)) + "\n")
            written += 1
    return written


def row_of(row: Sample, image_name: str) -> dict[str, str | int | bool]:
    """A sample as a JSONL row whose picture is the named file."""
    return {
        "id": row.id,
        "image": image_name,
        "question": row.question,
        "answer": row.answer,
        "kind": row.kind,
        "needs_picture": row.needs_picture,
        "seed": row.seed,
    }
