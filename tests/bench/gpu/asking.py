"""One request, timed the same way on every peer: 94 prompt tokens with a picture, greedy, and how near torch's fp32."""

from __future__ import annotations

import time
from typing import Any, Protocol

import numpy as np

from msao_compile.errors import MsaoError
from tests.bench.gpu.work import WARM_UPS, Result, Work, say

FAULTS = (MsaoError, RuntimeError, ValueError, OSError, MemoryError, TypeError, AttributeError)


class Peer(Protocol):
    """Something that answers; logits and tokens stay where it has them."""

    def start(self, batch: int) -> Any:
        """A new conversation for each of `batch` equal requests: logits [batch, vocabulary] after the prompt."""

    def step(self, tokens: Any) -> Any:
        """Logits after one more token each."""

    def pick(self, logits: Any) -> Any:
        """The likeliest tokens [batch]."""

    def tokens(self, numbers: list[int]) -> Any:
        """These tokens as `pick` gives them."""

    def host(self, logits: Any) -> np.ndarray:
        """Logits as fp32 on the host."""

    def wait(self) -> None:
        """Until everything that was asked for is done."""


def measure(peer: Peer, work: Work, result: Result) -> None:
    """Parity, then timings by batch; what fails is written down and the next is tried."""
    if work.reference.is_file():
        try:
            result.add(parity=compare(peer, work))
            say(f"parity {result.facts['parity']}")
        except FAULTS as error:
            result.add(parity={"fault": _line(error)})
            say(f"parity failed: {_line(error)}")
    rows: list[dict[str, Any]] = []
    for batch in work.batches:
        try:
            rows.append(timed(peer, batch, work))
        except FAULTS as error:
            rows.append({"batch": batch, "fault": _line(error)})
        result.add(rows=rows)
        say(f"batch {batch}: {_short(rows[-1])}")


def timed(peer: Peer, batch: int, work: Work) -> dict[str, Any]:
    """Milliseconds of several requests after a warm-up, each from arrays on the host to tokens on the host."""
    first_ms, token_ms, rates = [], [], []
    began = time.time()
    for _ in range(WARM_UPS + work.runs):
        peer.wait()
        start = time.perf_counter()
        tokens = peer.pick(peer.start(batch))
        peer.wait()
        first = time.perf_counter()
        for _ in range(work.new_tokens - 1):
            tokens = peer.pick(peer.step(tokens))
        peer.wait()
        end = time.perf_counter()
        first_ms.append((first - start) * 1e3)
        token_ms.append((end - first) * 1e3 / (work.new_tokens - 1))
        rates.append(batch * work.new_tokens / (end - start))
    keep = slice(WARM_UPS, None)
    return {
        "batch": batch,
        "ttft_ms": first_ms[keep],
        "tpot_ms": token_ms[keep],
        "tokens_per_s": rates[keep],
        "window": [began, time.time()],
    }


def compare(peer: Peer, work: Work) -> dict[str, Any]:
    """Logits at every step against torch's in fp32, both fed torch's tokens."""
    known = np.load(work.reference)
    wanted, ids = known["logits"], known["token_ids"].tolist()
    found = [peer.host(peer.start(1))[0]]
    found += [peer.host(peer.step(peer.tokens([token])))[0] for token in ids[:-1]]
    return likeness(np.stack(found), wanted)


def likeness(found_TV: np.ndarray, wanted_TV: np.ndarray) -> dict[str, Any]:
    """Cosine of each step's logits, share of steps with the same likeliest token, and the largest difference."""
    found, wanted = found_TV.astype(np.float64), wanted_TV.astype(np.float64)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    cosines = (found * wanted).sum(1) / norms
    return {
        "steps": len(found),
        "min_cosine": float(cosines.min()),
        "mean_cosine": float(cosines.mean()),
        "argmax_agreement": float((found.argmax(1) == wanted.argmax(1)).mean()),
        "max_abs": float(np.abs(found - wanted).max()),
    }


def _short(row: dict[str, Any]) -> str:
    if "fault" in row:
        return f"failed: {row['fault']}"
    middle = {name: float(np.median(row[name])) for name in ("ttft_ms", "tpot_ms", "tokens_per_s")}
    return ", ".join(f"{name} {value:.2f}" for name, value in middle.items())


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:400]
