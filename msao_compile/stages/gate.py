"""Refuse a parity matrix that holds a failure."""

from __future__ import annotations

from msao_compile.errors import GateError
from msao_compile.manifest.evidence import ParityEvidence


def refuse_failures(evidence: ParityEvidence) -> None:
    """Raise when a row failed.

    Raises:
        GateError: names the worst row and its bound.
    """
    failed = [row for row in evidence.rows if row.verdict == "FAIL"]
    if failed:
        worst = max(failed, key=lambda row: row.max_abs)
        raise GateError(f"parity failed for {worst.model}/{worst.subject} ({worst.dialect}, {worst.backend}): max abs "
                        f"{worst.max_abs:.3g}, min cosine {worst.min_cosine:.6f}, bound {worst.bound}; "
                        f"{len(failed)} of {len(evidence.rows)} rows fail")
