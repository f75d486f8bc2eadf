"""Everything that is measured on the held-out set, as plain counts."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from calibration.evaluate.answers import Answer, Answerer
from calibration.evaluate.speculation import GAMMA, Tally, agreement, speculate
from calibration.shapes.dataset import Sample, Split, samples
from calibration.shapes.questions import KINDS, TEXT_KINDS, VISION_KINDS
from calibration.shapes.render import blank_picture

GROUPS: dict[str, tuple[str, ...]] = {
    **{kind: (kind,) for kind in KINDS},
    "needs the picture": tuple(VISION_KINDS),
    "needs no picture": tuple(TEXT_KINDS),
    "all": tuple(KINDS),
}
BLIND_ROWS = 12_000


def measure(models: Path, split: Split, count: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Answers the first `count` questions of a split with both models and counts: see `calibration/README.md`."""
    rows = sorted(samples(split, count), key=lambda row: row.kind)
    flat = blank_picture()
    result: dict[str, Any] = {
        "set": split,
        "questions": count,
        "blind": _right(rows, blind_guesses(rows)),
        "weights_sha256": weight_digests(models),
        "models": {},
    }
    shown: dict[str, list[Answer]] = {}
    answerers = {name: Answerer(models / f"shapes-{name}") for name in ("edge", "cloud")}
    for name, answerer in answerers.items():
        progress(f"{name}: with pictures")
        shown[name] = answerer.answer(rows)
        progress(f"{name}: with the blank picture")
        blank = answerer.answer(rows, flat)
        changed = [a.text == b.text for a, b in zip(shown[name], blank, strict=True)]
        result["models"][name] = {
            "shown": _right(rows, [answer.text for answer in shown[name]]),
            "blank": _right(rows, [answer.text for answer in blank]),
            "same_when_blank": _count(rows, changed),
        }
    progress("speculation")
    result["speculation"] = {
        "gamma": GAMMA,
        "shown": _tallies(answerers["edge"], rows, shown["cloud"], None),
        "blank_draft": _tallies(answerers["edge"], rows, shown["cloud"], flat),
    }
    right = [answer.text == row.answer for answer, row in zip(shown["edge"], rows, strict=True)]
    result["edge_confidence_auroc"] = auroc([answer.confidence for answer in shown["edge"]], right)
    return result


def weight_digests(models: Path) -> dict[str, str]:
    """What was measured: SHA-256 of each model's weights."""
    files = {name: models / f"shapes-{name}" / "model.safetensors" for name in ("edge", "cloud")}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


def blind_guesses(rows: Sequence[Sample]) -> list[str]:
    """The best guess from the question alone: its most frequent answer in the fit set, else that of its kind."""
    by_question: defaultdict[str, Counter[str]] = defaultdict(Counter)
    by_kind: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in samples("fit", BLIND_ROWS):
        by_question[row.question][row.answer] += 1
        by_kind[row.kind][row.answer] += 1
    return [(by_question.get(row.question) or by_kind[row.kind]).most_common(1)[0][0] for row in rows]


def auroc(scores: Sequence[float], right: Sequence[bool]) -> float | None:
    """The chance that a right answer has a higher score than a wrong one; none if all are right or all wrong."""
    hits = [score for score, hit in zip(scores, right, strict=True) if hit]
    misses = [score for score, hit in zip(scores, right, strict=True) if not hit]
    if not hits or not misses:
        return None
    wins = sum((hit > miss) + 0.5 * (hit == miss) for hit in hits for miss in misses)
    return wins / (len(hits) * len(misses))


def _right(rows: Sequence[Sample], texts: Sequence[str]) -> dict[str, list[int]]:
    return _count(rows, [row.answer == text for row, text in zip(rows, texts, strict=True)])


def _count(rows: Sequence[Sample], flags: Sequence[bool]) -> dict[str, list[int]]:
    counts = {}
    for group, kinds in GROUPS.items():
        inside = [flag for row, flag in zip(rows, flags, strict=True) if row.kind in kinds]
        counts[group] = [sum(inside), len(inside)]
    return counts


def _tallies(
    draft: Answerer, rows: Sequence[Sample], answers: Sequence[Answer], flat: Image.Image | None
) -> dict[str, dict[str, int]]:
    agreed = agreement(draft, rows, answers, flat)
    tallies = {}
    for group, kinds in GROUPS.items():
        inside = [speculate(flags) for row, flags in zip(rows, agreed, strict=True) if row.kind in kinds]
        tallies[group] = vars(sum(inside, Tally()))
    return tallies
