"""The few pictures that ship with the repository: `python -m calibration.shapes.gallery` draws them again."""

import json
from pathlib import Path
from random import Random

from calibration.shapes.dataset import SEEDS, Sample, row_of
from calibration.shapes.questions import KINDS, VISION_KINDS, ask
from calibration.shapes.render import picture
from calibration.shapes.scene import draw_scene

PICTURES = Path(__file__).resolve().parent / "pictures"
GALLERY_SEEDS = SEEDS["heldout"][-6:]
"""The end of the held-out range, which no measurement reaches."""


def gallery() -> list[Sample]:
    """Every kind once, two kinds a picture, six pictures."""
    rows = []
    for index, seed in enumerate(GALLERY_SEEDS):
        rng = Random(seed)
        scene = draw_scene(rng, fewest=2)
        image = picture(scene)
        for kind in KINDS[index :: len(GALLERY_SEEDS)]:
            question, answer = ask(kind, scene, rng)
            rows.append(Sample(f"heldout-{seed}-{kind}", kind, question, answer, kind in VISION_KINDS, seed, image))
    return rows


def write_gallery(folder: Path) -> None:
    """Writes the six pictures and `questions.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for row in gallery():
        name = f"heldout-{row.seed}.png"
        row.image.save(folder / name, optimize=True)
        lines.append(json.dumps(row_of(row, name)) + "\n")
    (folder / "questions.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    write_gallery(PICTURES)
