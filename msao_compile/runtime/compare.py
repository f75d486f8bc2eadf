"""How far two arrays are apart, and what that means: PASS, FAIL, or AMBIGUOUS where only near-ties differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from msao_compile.errors import GateError

if TYPE_CHECKING:  # a kit carries this file to devices that have NumPy and no more
    from msao_compile.manifest.evidence import ParityEvidence, ParityRow
    from msao_compile.manifest.schema import Verdict

NEAR_TIE = 0.02  # of a row's standard deviation
ROWS = 64


@dataclass(frozen=True)
class Distance:
    """Extremes over all compared rows; a row is a vector along the last axis."""

    max_abs: float
    min_cosine: float
    argmax_agreement: float
    near_ties_only: bool
    compared: int


def distance(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Distance:
    """Compare (ours, original) pairs row by row.

    `near_ties_only`: wherever the largest entry differs, the original's two largest are all but equal, measured against
    the spread of their row and not against our error, which would excuse itself.

    Raises:
        ValueError: two arrays have different shapes.
    """
    count = 0
    max_abs, cosines, equal, ties = 0.0, [], [], []
    for one, other in (block for pair in pairs for block in _blocks(*pair)):
        count += len(one)
        if not (np.isfinite(one).all() and np.isfinite(other).all()):
            return Distance(float(np.finfo(np.float64).max), -1.0, 0.0, False, count)
        max_abs = max(max_abs, float(np.abs(one - other).max(initial=0.0)))
        lengths = np.linalg.norm(one, axis=-1), np.linalg.norm(other, axis=-1)
        norms = lengths[0] * lengths[1]
        cosine = (one * other).sum(-1) / np.where(norms > 0, norms, 1.0)
        cosines.append(np.where(norms > 0, cosine, lengths[0] == lengths[1]))  # two zero rows are equal, one is not
        same = one.argmax(-1) == other.argmax(-1)
        top = np.partition(other, -2, axis=-1)[:, -2:] if other.shape[-1] > 1 else other
        equal.append(same)
        ties.append(same | (top[:, -1] - top[:, 0] <= NEAR_TIE * other.std(-1)))
    agreement = float(np.concatenate(equal).mean())
    return Distance(max_abs, float(np.concatenate(cosines).min()), agreement, bool(np.concatenate(ties).all()), count)


def _blocks(ours: np.ndarray, original: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of both in double precision, few at a time: those of a large vocabulary take more memory than a model."""
    if ours.shape != original.shape:
        raise ValueError(f"shape {ours.shape} cannot be compared with {original.shape}")
    flat = [side.reshape(-1, side.shape[-1]) for side in (ours, original)]
    for start in range(0, len(flat[0]), ROWS):
        one, other = (side[start : start + ROWS].astype(np.float64) for side in flat)
        yield one, other


def verdict(found: Distance, bounds: Mapping[str, float | None]) -> tuple[Verdict, str]:
    """The verdict and the bounds in words. No bound is no pass."""
    words = ", ".join(f"{name} {value:g}" for name, value in bounds.items() if value is not None) or "none set"
    if words == "none set":
        return "AMBIGUOUS", words
    limit = bounds.get("max_abs")
    cosine = bounds.get("min_cosine")
    agreement = bounds.get("argmax_agreement")
    if (limit is not None and not found.max_abs <= limit) or (cosine is not None and not found.min_cosine >= cosine):
        return "FAIL", words
    if agreement is not None and found.argmax_agreement < agreement:
        return ("AMBIGUOUS" if found.near_ties_only else "FAIL"), words
    return "PASS", words


def refuse_failures(evidence: ParityEvidence, command: str) -> None:
    """Raise when a row failed.

    Raises:
        GateError: names the worst row, its bound and, of less than fp32, the command that finds the block at fault.
    """
    failed = [row for row in evidence.rows if row.verdict == "FAIL"]
    if failed:
        worst = max(failed, key=lambda row: row.max_abs)
        raise GateError(
            f"parity failed for {worst.model}/{worst.subject} ({worst.dialect}, {worst.backend}): max abs "
            f"{worst.max_abs:.3g}, min cosine {worst.min_cosine:.6f}, bound {worst.bound}; "
            f"{len(failed)} of {len(evidence.rows)} rows fail" + bisection(failed, command)
        )


def bisection(failed: Sequence[ParityRow], command: str) -> str:
    """Where rows of less than fp32 failed: how to find out which block loses what."""
    lower = any(row.precision != "fp32" for row in failed)
    return f"; `{command}` names the blocks that lose it" if lower else ""
