"""What MAS says of one modality of a request, and what to do with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from msao_compile.runtime.mas import measures
from msao_compile.runtime.mas.measures import Bools, Floats, Grids
from msao_compile.runtime.mas.temporal import TemporalLimits, kept_units

Action = Literal["drop", "reduce", "full"]
FULL_SHARE = 0.85
"""Where more than this is kept, leaving out the rest saves less than telling what was kept."""


@dataclass(frozen=True)
class Limits:
    """`rho`: share of importance that is kept; `kappa_min`: share of cells kept at least; `tau_drop`: the modality is
    dropped where it is needed with less probability; `temporal`: of frames and seconds.
    """

    rho: float
    kappa_min: float
    tau_drop: float
    temporal: TemporalLimits


@dataclass(frozen=True)
class Fitted:
    """One probe's own numbers: weights of activation, novelty and relevance (sum 1), and b_0 .. b_3 of `needed`."""

    weights: tuple[float, float, float]
    coefficients: tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Reading:
    """One modality. `needed` is R; `kept` the cells of each picture or frame, in order; `kept_frames` the frames or
    seconds, None where the medium has no time; `mas` 1 = droppable, 0 = dense and needed.

    `measured` holds activation, novelty and relevance of each cell, of pictures alone.

    A tiny decisive object has a high `mas` and must not be dropped: `action` goes by `needed` and the kept shares.
    """

    needed: float
    sparsity: float
    kappa_spatial: float
    kappa_temporal: float
    action: Action
    kept: tuple[Bools, ...]
    kept_frames: Bools | None = None
    measured: tuple[Floats, ...] | None = None

    @property
    def necessity(self) -> float:
        """`A` in [0, 1]."""
        return measures.necessity(self.needed, self.kappa_spatial, self.kappa_temporal)

    @property
    def mas(self) -> float:
        """1 - A in [0, 1]."""
        return 1 - self.necessity


def decide(needed: float, kappa: float, tau_drop: float) -> Action:
    """Drop what is hardly needed, send in full what would be kept nearly whole, reduce the rest."""
    if needed < tau_drop:
        return "drop"
    return "full" if kappa > FULL_SHARE else "reduce"


def dense(grids: Grids, frames: int | None = None) -> Reading:
    """The reading of what cannot be measured: needed for certain, kept whole."""
    kept = tuple(np.ones(grid, np.bool_) for grid in grids)
    return Reading(1.0, 0.0, 1.0, 1.0, "full", kept, None if frames is None else np.ones(frames, np.bool_))


def read_cells(
    measured_3N: Sequence[Floats], similar: float, prompt: float, grids: Grids, fitted: Fitted, limits: Limits
) -> Reading:
    """The reading of pictures from the activation, novelty and relevance of their cells.

    `similar` and `prompt` are those of `measures.needed`.
    """
    if not all(np.isfinite(values).all() for values in measured_3N):
        return dense(grids)
    p_N = measures.importance(measured_3N, fitted.weights)
    sparse = measures.sparsity(p_N)
    kept_N = measures.kept_cells(p_N, grids, limits.rho, limits.kappa_min)
    kappa = float(kept_N.mean())
    needed = measures.needed(fitted.coefficients, similar, sparse, prompt)
    action = decide(needed, kappa, limits.tau_drop)
    return Reading(needed, sparse, kappa, 1.0, action, cut(kept_N, grids), measured=tuple(measured_3N))


def read_features(
    features_ND: Floats, prompt_JD: Floats, prompt: float, grids: Grids, fitted: Fitted, limits: Limits
) -> Reading:
    """The reading of pictures from the features of their cells and the vectors of the prompt in the same space."""
    if not measures.usable(features_ND) or sum(rows * columns for rows, columns in grids) != len(features_ND):
        return dense(grids)
    similar_N = measures.similarity(features_ND, prompt_JD)
    measured = (measures.activation(features_ND), measures.novelty(features_ND, grids), measures.relevance(similar_N))
    return read_cells(measured, measures.top_mean(similar_N), prompt, grids, fitted, limits)


def read_clip(reading: Reading, frames_TD: Floats, mean_D: Floats, relevance_T: Floats, limits: Limits) -> Reading:
    """The reading of a clip: of all its cells (a grid for each frame), without frames that repeat what was kept."""
    kept_T = kept_units(frames_TD, mean_D, relevance_T, limits.temporal)
    kept = tuple(cells & frame for cells, frame in zip(reading.kept, kept_T, strict=True))
    return _timed(reading, reading.kappa_spatial, kept_T, kept, limits)


def read_sound(
    reading: Reading, segments_TD: Floats, mean_D: Floats, relevance_T: Floats, limits: Limits
) -> Reading:  # fmt: skip
    """The reading of a sound: needed as its seconds (one grid of T x 1) say, and cut in time alone."""
    kept_T = kept_units(segments_TD, mean_D, relevance_T, limits.temporal)
    return _timed(reading, 1.0, kept_T, (kept_T[:, None],), limits)


def _timed(reading: Reading, kappa: float, kept_T: Bools, kept: tuple[Bools, ...], limits: Limits) -> Reading:
    kappa_temporal = float(kept_T.mean())
    action = decide(reading.needed, kappa * kappa_temporal, limits.tau_drop)
    return Reading(reading.needed, reading.sparsity, kappa, kappa_temporal, action, kept, kept_T)


def cut(kept_N: Bools, grids: Grids) -> tuple[Bools, ...]:
    """Units picture by picture, each in its rows and columns."""
    found = []
    start = 0
    for rows, columns in grids:
        found.append(kept_N[start : start + rows * columns].reshape(rows, columns))
        start += rows * columns
    return tuple(found)
