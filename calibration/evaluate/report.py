"""Tables of a measurement, in Markdown, and their place in the README."""

from pathlib import Path
from typing import Any

from calibration.evaluate.intervals import wilson
from calibration.evaluate.measure import GROUPS

BEGIN = "<!-- measured: written by python -m calibration.evaluate -->"
END = "<!-- end of measured -->"


def tables(result: dict[str, Any]) -> str:
    """The accuracy table and the speculation table."""
    return "\n".join(
        [*_accuracy(result), "", *_speculation(result["speculation"], result["blind"]), "", _confidence(result)]
    )


def insert(readme: Path, text: str) -> None:
    """Replaces what stands between the two marks of the README.

    Raises:
        ValueError: the README lacks the marks.
    """
    before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme} lacks the marks {BEGIN!r} and {END!r}: put them where the tables belong")
    readme.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def _accuracy(result: dict[str, Any]) -> list[str]:
    edge, cloud = result["models"]["edge"], result["models"]["cloud"]
    lines = [
        f"Exact match in percent on the first {result['questions']} questions of the {result['set']} set, with",
        '95 % Wilson intervals. "Blank" is the same question with the fixed flat picture; "same" is how many answers',
        'the blank picture left unchanged; "blind" is the best guess from the question alone, from the fit set.',
        "",
        "| kind | n | cloud | edge | cloud, blank | edge, blank | same, cloud | same, edge | blind |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for group in GROUPS:
        columns = [
            _share(*cloud["shown"][group]),
            _share(*edge["shown"][group]),
            _share(*cloud["blank"][group]),
            _share(*edge["blank"][group]),
            _plain(*cloud["same_when_blank"][group]),
            _plain(*edge["same_when_blank"][group]),
            _plain(*result["blind"][group]),
        ]
        asked = cloud["shown"][group][1]
        lines.append(f"| {group} | {asked} | " + " | ".join(columns) + " |")
    return lines


def _speculation(speculation: dict[str, Any], asked: dict[str, list[int]]) -> list[str]:
    lines = [
        f"Greedy speculation on the same questions: the edge model drafts {speculation['gamma']} tokens, the cloud",
        'model verifies. "Blank draft" lets the edge model draft without seeing the picture.',
        "",
        "| kind | tokens an answer | acceptance | tokens a verify | acceptance, blank draft | tokens a verify, blank |",
        "|---|---|---|---|---|---|",
    ]
    for group, shown in speculation["shown"].items():
        blank = speculation["blank_draft"][group]
        lines.append(f"| {group} | {shown['produced'] / asked[group][1]:.1f} | {_ratio(shown)} | {_ratio(blank)} |")
    return lines


def _ratio(tally: dict[str, int]) -> str:
    return f"{tally['accepted'] / tally['drafted']:.3f} | {tally['produced'] / tally['verifies']:.2f}"


def _confidence(result: dict[str, Any]) -> str:
    area = result["edge_confidence_auroc"]
    said = "undefined (all right or all wrong)" if area is None else f"{area:.3f}"
    return (
        "Edge confidence (geometric mean of its token probabilities) against edge correctness over all questions: "
        f"AUROC {said}."
    )


def _share(right: int, asked: int) -> str:
    low, high = wilson(right, asked)
    return f"{100 * right / asked:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _plain(right: int, asked: int) -> str:
    return f"{100 * right / asked:.1f}"
