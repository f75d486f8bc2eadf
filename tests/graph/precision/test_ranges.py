"""Ranges grow sample by sample, say how well they are covered, and survive a file."""

from __future__ import annotations

import subprocess
import sys

import pytest

from msao_compile.errors import InputError, StageError
from msao_compile.graph.precision.ranges import Coverage, Ranges

VALUES = {"largest.0": "a", "largest.1": "b", "largest.2": "c"}


def gathered() -> Ranges:
    """Eight samples: `a` grows to the last, `b` to the third, `c` is never anything."""
    ranges = Ranges(VALUES)
    for sample in range(1, 9):
        ranges.add({"largest.0": float(sample), "largest.1": min(sample, 3) * 10.0, "largest.2": 0.0, "logits": None})
    return ranges


def test_a_range_is_the_maximum_over_the_samples() -> None:
    ranges = Ranges(VALUES)
    for most in (1.0, 5.0, 2.0):
        ranges.add({"largest.0": most})
    assert (ranges.maximum, ranges.last_grew, ranges.samples) == ({"a": 5.0}, {"a": 2}, 3)


def test_coverage_names_what_was_never_seen_and_how_much_still_grew() -> None:
    assert gathered().coverage() == Coverage(samples=8, seen=2, never=("c",), still_growing=0.5)


def test_a_maximum_that_last_grew_before_the_last_quarter_has_settled() -> None:
    ranges = Ranges({"o": "a"})
    for most in (1, 1, 1, 1, 1, 2, 2, 2):
        ranges.add({"o": most})
    assert ranges.coverage().still_growing == 0
    ranges.add({"o": 3})
    assert ranges.coverage().still_growing == 1


def test_no_samples_cover_nothing() -> None:
    assert Ranges(VALUES).coverage() == Coverage(samples=0, seen=0, never=("a", "b", "c"), still_growing=0.0)


def test_ranges_come_back_from_their_text() -> None:
    ranges, again = gathered(), Ranges.from_json(gathered().to_json())
    assert again.to_json() == ranges.to_json()
    assert (again.maximum, again.coverage()) == (ranges.maximum, ranges.coverage())


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"values": {"o": "a"}, "samples": 1, "maximum": {}, "last_grew": {}}']
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="observe the graph again"):
        Ranges.from_json(text)


@pytest.mark.parametrize("most", [float("nan"), float("inf")])
def test_a_maximum_that_is_no_number_is_refused_and_leaves_no_trace(most: float) -> None:
    ranges = Ranges(VALUES)
    with pytest.raises(StageError, match="'b' reached"):
        ranges.add({"largest.0": 1.0, "largest.1": most})
    assert (ranges.samples, ranges.maximum) == (0, {})


def test_gathering_needs_no_compile_library() -> None:
    code = (
        "import sys; [sys.modules.__setitem__(name, None) for name in ('torch', 'onnx', 'onnx_ir', 'onnxruntime')]; "
        "from msao_compile.graph.precision.ranges import Ranges; Ranges({'o': 'a'}).add({'o': 1.0})"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
