"""What cells of a picture weigh: parts are covered, and where the drafter then says something else, something mattered.

Shape suffixes: B parts of pictures, N cells, M the three measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from msao_compile.runtime.answer import Clock
from msao_compile.runtime.mas.layout import Tile
from msao_compile.runtime.mas.payload import Color
from msao_compile.runtime.mas.probes import Look, Probe
from msao_compile.runtime.preprocess import decode
from msao_compile.runtime.sampling import mask_vocabulary
from msao_compile.runtime.session import ModelSession
from msao_compile.stages.fit.regression import Floats
from msao_compile.stages.fit.samples import Sample

if TYPE_CHECKING:
    from PIL.Image import Image

PARTS = 3
"""A picture is covered a ninth at a time."""
MOST = 48
"""Pictures that are covered: each is nine answers' first tokens."""
Weights = tuple[float, float, float]


def weights(probe: Probe, session: ModelSession, samples: Iterable[Sample], fill: Color, default: Weights) -> Weights:
    """Of activation, novelty and relevance, sum 1: the mixture that tells best where covering changes the first token.

    `default` where covering changed nothing, or no picture can be read cell by cell.
    """
    shares, effects = [], []
    for sample in [sample for sample in samples if len(sample.pictures) == 1][:MOST]:
        picture = decode(sample.pictures[0])
        request = session.prepare(sample.question, [picture])
        readings = probe.read(Look(sample.question, (picture,), request), session, Clock())
        measured = readings.of["image"].measured
        if measured is None:
            continue
        effect_B = _effects(session, sample.question, picture, fill)
        cells = [np.asarray(values_N, np.float64) for values_N in measured]
        shares.append(effect_B.sum() * by_part(cells, readings.tiles["image"]))
        effects.append(effect_B)
    if not effects or not np.concatenate(effects).any():
        return default
    found = nonnegative(np.concatenate(shares), np.concatenate(effects))
    if not found.any():
        return default
    first, second, third = (found / found.sum()).tolist()
    return first, second, third


def nonnegative(values_BM: Floats, wanted_B: Floats) -> Floats:
    """[M]: the weights of least squares of which none is negative: of a few columns, every choice of them is tried.

    Source: Lawson and Hanson, "Solving Least Squares Problems" (1974), chapter 23: the optimum is the plain solution on
    the columns whose weights are positive.
    """
    columns = values_BM.shape[1]
    best, least = np.zeros(columns), float((wanted_B**2).sum())
    for count in range(1, columns + 1):
        for chosen in map(list, combinations(range(columns), count)):
            found = np.linalg.lstsq(values_BM[:, chosen], wanted_B, rcond=None)[0]
            error = float(((values_BM[:, chosen] @ found - wanted_B) ** 2).sum())
            if (found >= 0).all() and error < least - 1e-12:
                best, least = np.zeros(columns), error
                best[chosen] = found
    return best


def _effects(session: ModelSession, question: str, picture: Image, fill: Color) -> Floats:
    """[B]: how far the first token's distribution moves (Kullback-Leibler, nats) when each part is covered."""
    whole = _log_chances(session, question, picture)
    found = []
    for row in range(PARTS):
        for column in range(PARTS):
            covered = picture.copy()
            left, right = (picture.width * edge // PARTS for edge in (column, column + 1))
            top, bottom = (picture.height * edge // PARTS for edge in (row, row + 1))
            covered.paste(fill, (left, top, right, bottom))
            found.append(float((np.exp(whole) * (whole - _log_chances(session, question, covered))).sum()))
    return np.asarray(np.maximum(found, 0.0))


def _log_chances(session: ModelSession, question: str, picture: Image) -> Floats:
    request = session.prepare(question, [picture])
    logits, _ = session.prefill(request, session.encode(request.tensors, Clock()), Clock())
    vocabulary = session.tokenizer.vocab_size
    scores = np.asarray(mask_vocabulary(logits[-1], vocabulary)[:vocabulary], np.float64)
    scores -= scores.max()
    chances: Floats = scores - np.log(np.exp(scores).sum())
    return chances


def by_part(measured: Sequence[Floats], tiles: Sequence[Tile]) -> Floats:
    """[B, M]: the share of each measure that the cells of a part hold."""
    places_N = np.concatenate([_places(tile) for tile in tiles])
    found = np.zeros((PARTS * PARTS, len(measured)))
    for column, values_N in enumerate(measured):
        np.add.at(found[:, column], places_N, values_N)
    total_M = found.sum(0)
    return np.asarray(found / np.where(total_M > 0, total_M, 1))


def _places(tile: Tile) -> np.ndarray:
    """[N]: the part in which the middle of each cell of a tile lies."""
    left, top, right, bottom = tile.box
    x = left + (np.arange(tile.columns) + 0.5) / tile.columns * (right - left)
    y = top + (np.arange(tile.rows) + 0.5) / tile.rows * (bottom - top)
    columns, rows = (np.minimum((axis * PARTS).astype(np.int64), PARTS - 1) for axis in (x, y))
    places: np.ndarray = rows[:, None] * PARTS + columns[None]
    return places.reshape(-1)
