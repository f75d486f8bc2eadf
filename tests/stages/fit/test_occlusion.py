"""Weights of measures against values that are known, and planted: a drafter that looks at one place only."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from msao_compile.runtime.mas.layout import Tile
from msao_compile.runtime.mas.probes import Look, Readings
from msao_compile.runtime.mas.reading import Reading
from msao_compile.runtime.session import Request
from msao_compile.stages.fit.occlusion import by_part, nonnegative, weights
from msao_compile.stages.fit.samples import Sample

DEFAULT = (1 / 3, 1 / 3, 1 / 3)


@pytest.mark.parametrize(
    ("values", "wanted", "found"),
    [
        ([[1, 0], [0, 1]], [2, 3], [2, 3]),
        ([[1, 0], [0, 1]], [2, -3], [2, 0]),
        ([[1, 1], [1, 1]], [-1, -1], [0, 0]),
        ([[1, 1], [0, 1]], [1, 3], [0, 2]),  # plainly (-2, 3)
        ([[1, 0], [2, 0]], [1, 2], [1, 0]),
    ],
)
def test_no_weight_is_negative(values: list[list[float]], wanted: list[float], found: list[float]) -> None:
    assert nonnegative(np.array(values, float), np.array(wanted, float)).tolist() == pytest.approx(found)


@given(st.integers(0, 10_000))
def test_no_other_weights_that_are_not_negative_are_nearer(seed: int) -> None:
    chance = np.random.default_rng(seed)
    values, wanted = chance.standard_normal((12, 3)), chance.standard_normal(12)
    found = nonnegative(values, wanted)
    gradient = values.T @ (values @ found - wanted)  # Karush, Kuhn and Tucker
    assert (found >= 0).all() and (gradient > -1e-9).all() and abs(float(gradient @ found)) < 1e-9


def test_cells_count_for_the_part_in_which_they_lie() -> None:
    tiles = (Tile(6, 6, 0),)
    values = np.zeros(36)
    values[[0, 1, 7, 35]] = (1, 2, 3, 2)  # three of the first ninth, one of the last
    found = by_part([values, np.ones(36)], tiles)
    assert found[:, 0].tolist() == pytest.approx([0.75, 0, 0, 0, 0, 0, 0, 0, 0.25])
    assert found[:, 1].tolist() == pytest.approx([1 / 9] * 9)
    right = Tile(1, 3, 0, (2 / 3, 0.0, 1.0, 1.0))
    assert by_part([np.ones(3)], (right,))[:, 0].tolist() == pytest.approx([0, 0, 0, 0, 0, 1, 0, 0, 0])


class Seer:
    """A drafter whose first token follows the middle ninth of a picture."""

    def __init__(self, looks: bool = True) -> None:
        self.looks = looks
        self.tokenizer = type("Words", (), {"vocab_size": 4})()

    def prepare(self, question: str, pictures: Sequence[Any]) -> Request:
        return Request(np.zeros(1, np.int64), {"pixels": np.asarray(pictures[0], np.float64)})

    def encode(self, tensors: dict[str, np.ndarray], clock: object) -> dict[str, np.ndarray]:
        return tensors

    def prefill(self, request: Request, encoded: dict[str, np.ndarray], clock: object) -> tuple[np.ndarray, None]:
        seen = encoded["pixels"][20:40, 20:40].mean() / 64 if self.looks else 0.0
        return np.array([[seen, 0.0, 0.0, 0.0]]), None


class Pointing:
    """A probe whose relevance is in the middle; activation and novelty are elsewhere."""

    def read(self, look: Look, session: object, clock: object) -> Readings:
        middle = np.zeros(9)
        middle[4] = 1.0
        measured = (1 - middle, np.eye(1, 9)[0], middle)
        reading = Reading(1.0, 0.0, 1.0, 1.0, "full", (np.ones((3, 3), np.bool_),), measured=measured)
        return Readings({"image": reading}, {"image": (Tile(3, 3, 0),)})


def pictures(count: int) -> list[Sample]:
    found = []
    for place in range(count):
        buffer = io.BytesIO()
        Image.new("RGB", (60, 60), (255 - place,) * 3).save(buffer, "PNG")
        found.append(Sample("?", (buffer.getvalue(),), "a", str(place)))
    return found


def test_the_measure_that_tells_where_a_drafter_looks_has_all_the_weight() -> None:
    found = weights(Pointing(), Seer(), pictures(3), (1, 1, 1), DEFAULT)  # type: ignore[arg-type]
    assert found == pytest.approx((0.0, 0.0, 1.0))


@pytest.mark.parametrize("samples", [[], pictures(2), [Sample("?", (), "a", "0")]])
def test_where_nothing_changes_the_default_stays(samples: list[Sample]) -> None:
    assert weights(Pointing(), Seer(looks=False), samples, (1, 1, 1), DEFAULT) == DEFAULT  # type: ignore[arg-type]
