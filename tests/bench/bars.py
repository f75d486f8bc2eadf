"""The bars: what was asked, what was found, met or not. Nothing here is ever tuned to a result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from tests.bench import work
from tests.bench.build_cost import BuildCost
from tests.bench.timing import Times


@dataclass(frozen=True)
class Bar:
    """One bar; `found` is None when it could not be measured, and `why` says why: that is never a pass."""

    name: str
    asked: str
    found: str | None
    met: bool
    why: str = ""

    @property
    def verdict(self) -> str:
        """`met` or `NOT met`."""
        return "met" if self.met else "NOT met"


@dataclass(frozen=True)
class Missing:
    """A peer or a build that gave no result."""

    name: str
    reason: str


def first_ms(times: Times) -> float:
    """Median of vision and prefill together."""
    return median(vision + prefill for vision, prefill in zip(times.vision_ms, times.prefill_ms, strict=True))


def prefill_ms(times: Times) -> float:
    """Median prefill."""
    return median(times.prefill_ms)


def tpot_ms(times: Times) -> float:
    """Median time of a token after the first."""
    return median(times.tpot_ms)


@dataclass(frozen=True)
class Comparison:
    """A bar on a ratio: peer / ours at least `limit` where `faster`, else ours / peer at most `limit`."""

    name: str
    figure: Callable[[Times], float]
    limit: float
    faster: bool


EAGER = (
    Comparison("vision + prefill, faster than Hugging Face eager", first_ms, work.PREFILL_AND_VISION_FASTER, True),
    Comparison("TPOT, faster than Hugging Face eager", tpot_ms, work.TPOT_FASTER, True),
)
LLAMA = (
    Comparison("TPOT, of llama.cpp f32", tpot_ms, work.TPOT_OF_LLAMA, False),
    Comparison("prefill, of llama.cpp f32", prefill_ms, work.PREFILL_OF_LLAMA, False),
)


def speed_bars(ours: Times | Missing, eager: Times | Missing, llamas: Sequence[Times | Missing]) -> list[Bar]:
    """This project against its peers; of llama.cpp's ways to compute attention the faster one counts."""
    return [
        *(_speed_bar(comparison, ours, [eager]) for comparison in EAGER),
        *(_speed_bar(comparison, ours, llamas) for comparison in LLAMA),
    ]


def _speed_bar(comparison: Comparison, ours: Times | Missing, peers: Sequence[Times | Missing]) -> Bar:
    asked = f"{'>=' if comparison.faster else '<='} {comparison.limit:g}x"
    missing = next((one for one in (ours, *peers) if isinstance(one, Missing)), None)
    if missing is not None or isinstance(ours, Missing):
        return Bar(comparison.name, asked, None, False, f"not run: {missing.reason if missing else ''}")
    best = min(comparison.figure(peer) for peer in peers if isinstance(peer, Times))
    own = comparison.figure(ours)
    ratio = best / own if comparison.faster else own / best
    met = ratio >= comparison.limit if comparison.faster else ratio <= comparison.limit
    return Bar(comparison.name, asked, f"{ratio:.3f}x", met)


def token_bars(reference: Times | Missing, others: Sequence[Times | Missing]) -> list[Bar]:
    """Every peer gave the reference's tokens: else it did other work."""
    return [_token_bar(reference, other) for other in others]


def _token_bar(reference: Times | Missing, other: Times | Missing) -> Bar:
    name, asked = f"same greedy tokens: {other.name}", f"{work.NEW_TOKENS} of {work.NEW_TOKENS}"
    missing = next((one for one in (reference, other) if isinstance(one, Missing)), None)
    if missing is not None or isinstance(reference, Missing) or isinstance(other, Missing):
        return Bar(name, asked, None, False, f"not run: {missing.reason if missing else ''}")
    pairs = zip(reference.token_ids, other.token_ids, strict=False)
    same = next((index for index, (left, right) in enumerate(pairs) if left != right), len(other.token_ids))
    met = other.token_ids == reference.token_ids and same == work.NEW_TOKENS
    return Bar(name, asked, f"first {same}", met)


def build_bars(cost: BuildCost | Missing) -> list[Bar]:
    """What a build and an import may cost."""
    asked = (
        ("export of all modules", f"<= {work.EXPORT_S:g} s"),
        ("peak RSS of the export, of the weights", f"<= {work.RSS_OF_WEIGHTS:g}x"),
        ("build with nothing to do, whole process", f"<= {work.NOOP_S:g} s"),
        ("import of the runtime", f"<= {work.IMPORT_S * 1e3:g} ms"),
    )
    if isinstance(cost, Missing):
        return [Bar(name, limit, None, False, f"not run: {cost.reason}") for name, limit in asked]
    rss = max(cost.export_peak_rss_bytes) / cost.weight_bytes
    export, noop, importing = median(cost.export_s), median(cost.noop_s), median(cost.import_s)
    found = (
        (f"{export:.1f} s", export <= work.EXPORT_S),
        (f"{rss:.2f}x", rss <= work.RSS_OF_WEIGHTS),
        (f"{noop:.2f} s", noop <= work.NOOP_S),
        (f"{importing * 1e3:.0f} ms", importing <= work.IMPORT_S),
    )
    return [Bar(name, limit, value, met) for (name, limit), (value, met) in zip(asked, found, strict=True)]
