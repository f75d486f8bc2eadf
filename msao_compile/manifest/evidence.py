"""What stands in a deployment's `evidence/`: the measurements that the manifest's claims rest on."""

from __future__ import annotations

from pydantic import Field

from msao_compile.manifest.offload import Primitives
from msao_compile.manifest.schema import Dialect, Frozen, Verdict


class ParityRow(Frozen):
    """One comparison of what ships with its torch original.

    `subject` is a component, `whole` (the complete forward, teacher-forced) or `split after <component>`.
    """

    model: str
    subject: str
    dialect: Dialect
    backend: str
    precision: str
    verdict: Verdict
    max_abs: float
    min_cosine: float
    argmax_agreement: float
    compared: int
    bound: str


class ParityEvidence(Frozen):
    """`evidence/parity.json`: what was compared, and the recipe's bounds by precision that it was held against."""

    rows: tuple[ParityRow, ...]
    bounds: dict[str, dict[str, float | None]]
    left_out: dict[str, str] = Field(default_factory=dict)
    """Models that were not compared, and why; by model and subject, comparisons that a model does not allow."""


class Spread(Frozen):
    """Median and extremes of repeated timings, in milliseconds."""

    median_ms: float
    min_ms: float
    max_ms: float
    runs: int


class ModuleTiming(Frozen):
    """One module on one target, warm."""

    model: str
    component: str
    target: str
    time: Spread
    shape: str


class RouteTiming(Frozen):
    """One route answering one request of a class."""

    route: str
    task: str
    model: str
    request: str
    ttft: Spread
    tpot: Spread
    modules_ms: dict[str, float]
    bytes_up: int
    bytes_down: int
    tokens: int


class MeasureEvidence(Frozen):
    """`evidence/measure.json`."""

    machine: dict[str, str]
    modules: tuple[ModuleTiming, ...]
    routes: tuple[RouteTiming, ...]
    primitives: tuple[Primitives, ...] = ()


class StageRun(Frozen):
    """One stage run of the build that made an object; `peak_rss_bytes` is the child process's own maximum.

    `record` is the digest of the key that names this run in the store; garbage collection keeps it.
    """

    stage: str
    subject: str
    record: str
    seconds: float
    peak_rss_bytes: int


class BuildEvidence(Frozen):
    """`evidence/build.json`."""

    stages: tuple[StageRun, ...]
    tools: dict[str, str]
