"""What each section of the report page shows, ready for the template."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from msao_compile.cli import units
from msao_compile.cli.page.charts import Chart, Entry, Part, linear, logarithmic
from msao_compile.cli.page.palette import OTHER, colour_of, in_execution_order
from msao_compile.cli.page.source import Source
from msao_compile.manifest.evidence import BuildEvidence, ParityRow, RouteTiming, Spread, StageRun
from msao_compile.manifest.schema import Engine, Module, PartitionPoint, Status, Verdict

LADDER: tuple[Status, ...] = ("built", "ran", "parity", "qualified")
STATUS_ORDER: tuple[Status, ...] = ("qualified", "parity", "ran", "built", "deferred")
ROLES = {"draft": "drafter", "target": "verifier"}
VERDICTS: tuple[Verdict, ...] = ("FAIL", "AMBIGUOUS", "PASS")
MOST_STAGES = 20
UP, DOWN = 1, 3


@dataclass(frozen=True)
class Sharing:
    """Weights on disk as they are, and as they would be with a copy for every model."""

    kept_bytes: int
    copied_bytes: int
    shared: tuple[tuple[Module, tuple[str, ...]], ...]

    @property
    def saved_bytes(self) -> int:
        """What sharing saves."""
        return self.copied_bytes - self.kept_bytes


@dataclass(frozen=True)
class EngineRow:
    """An engine and the steps of its ladder, each with whether it was reached."""

    component: str
    users: tuple[str, ...]
    engine: Engine
    steps: tuple[tuple[str, bool], ...]


def status_counts(source: Source) -> tuple[tuple[str, int], ...]:
    """How many engines stand on each step, best first."""
    counts = Counter(engine.status for engine in source.deployment.engines)
    return tuple((status, counts[status]) for status in STATUS_ORDER if counts[status])


def verdict_counts(source: Source) -> tuple[tuple[str, int], ...]:
    """How many comparisons came to each verdict, worst first."""
    counts = Counter(row.verdict for row in (source.parity.rows if source.parity else ()))
    return tuple((verdict, counts[verdict]) for verdict in VERDICTS if counts[verdict])


def parity_rows(source: Source) -> list[ParityRow]:
    """Every comparison, what failed first, then in the order of the evidence."""
    return sorted(source.parity.rows, key=lambda row: VERDICTS.index(row.verdict)) if source.parity else []


def sizes(source: Source) -> Chart:
    """Weights of each model, stacked by component; shared ones are hatched."""
    entries = []
    for model in source.deployment.models:
        modules = [source.deployment.module(module_id) for module_id in model.components.values()]
        parts = tuple(
            Part(
                module.component,
                module.weight_bytes,
                units.size(module.weight_bytes) + (", shared" if len(source.users(module.id)) > 1 else ""),
                colour_of(module.component),
                len(source.users(module.id)) > 1,
            )
            for module in modules
        )
        total = units.size(sum(part.value for part in parts))
        params = units.count(sum(module.params for module in modules))
        entries.append(Entry(model.name, f"{model.family}, {params} parameters", total, parts))
    return linear("sizes", "Weights of each model by module", entries, units.short_size)


def sharing(source: Source) -> Sharing:
    """What the modules weigh once, and what they would weigh once for each model."""
    modules = source.deployment.modules
    users = {module.id: source.users(module.id) for module in modules}
    return Sharing(
        sum(module.weight_bytes for module in modules),
        sum(module.weight_bytes * max(len(users[module.id]), 1) for module in modules),
        tuple((module, users[module.id]) for module in modules if len(users[module.id]) > 1),
    )


def engines(source: Source) -> tuple[EngineRow, ...]:
    """Every engine with its ladder, in the order of the manifest."""
    rows = []
    for engine in source.deployment.engines:
        reached = LADDER.index(engine.status) if engine.status in LADDER else -1
        steps = tuple((step, index <= reached) for index, step in enumerate(LADDER))
        component = source.deployment.module(engine.module).component
        rows.append(EngineRow(component, source.users(engine.module), engine, steps))
    return tuple(rows)


def first_token(timings: tuple[RouteTiming, ...]) -> Chart:
    """Time to first token of each route, stacked by module as they run, striped in the cloud; the rest is "other"."""
    entries = []
    for timing in timings:
        known = sum(timing.modules_ms.values())
        parts = [
            Part(name, ms, f"{units.milliseconds(ms)} ms", colour_of(name), hatched=name.startswith("cloud/"))
            for name in in_execution_order(timing.modules_ms)
            for ms in [timing.modules_ms[name]]
        ]
        rest = timing.ttft.median_ms - known
        if rest > 0:
            parts.append(Part("other", rest, f"{units.milliseconds(rest)} ms", OTHER))
        entries.append(Entry(f"{timing.route} route", _about(timing), spread(timing.ttft), tuple(parts)))
    return linear("ttft", "Time to first token, median, in milliseconds", entries, _ms)


def per_token(timings: tuple[RouteTiming, ...]) -> Chart:
    """Time per further token of each route."""
    entries = [
        Entry(
            f"{timing.route} route",
            _about(timing),
            spread(timing.tpot),
            (
                Part(
                    "per token",
                    timing.tpot.median_ms,
                    f"{units.milliseconds(timing.tpot.median_ms)} ms",
                    colour_of("decoder"),
                ),
            ),
        )
        for timing in timings
    ]
    return linear("tpot", "Time per further token, median, in milliseconds", entries, _ms)


def route_bytes(timings: tuple[RouteTiming, ...]) -> Chart:
    """Bytes sent and received by each route."""
    entries = []
    for timing in timings:
        for direction, held, colour in (("sent", timing.bytes_up, UP), ("received", timing.bytes_down, DOWN)):
            part = Part(direction, held, units.size(held), colour)
            entries.append(Entry(f"{timing.route} route, {direction}", _about(timing), units.size(held), (part,)))
    return logarithmic("route-bytes", "Bytes over the link for one answer", entries, units.short_size)


def cut_bytes(points: tuple[PartitionPoint, ...]) -> Chart:
    """Bytes that cross each partition point, by request class."""
    entries = [
        Entry(
            f"after {point.after}",
            f"{point.model}, {request}",
            units.size(held),
            (Part("crossing", held, "", colour_of(point.after)),),
        )
        for point in points
        for request, held in point.bytes_per_request.items()
    ]
    return logarithmic("cut-bytes", "Bytes that cross each partition point for one request", entries, units.short_size)


def stage_seconds(build: BuildEvidence) -> Chart:
    """Seconds of the longest stages."""
    entries = [
        Entry(run.stage, run.subject, units.seconds(run.seconds), (_stage_part(run, run.seconds),))
        for run in longest(build)
    ]
    return linear("stage-seconds", "Time of each stage", entries, units.short_seconds)


def stage_memory(build: BuildEvidence) -> Chart:
    """Peak memory of the same stages, in the same order."""
    entries = [
        Entry(run.stage, run.subject, units.size(run.peak_rss_bytes), (_stage_part(run, run.peak_rss_bytes),))
        for run in longest(build)
    ]
    return linear("stage-memory", "Peak memory of each stage's process", entries, units.short_size)


def longest(build: BuildEvidence) -> list[StageRun]:
    """The stages that took longest, first the longest, and one that stands for all the others."""
    ordered = sorted(build.stages, key=lambda run: -run.seconds)
    if len(ordered) <= MOST_STAGES:
        return ordered
    rest = ordered[MOST_STAGES:]
    others = StageRun(
        stage=f"{len(rest)} shorter stages",
        subject="together; memory of the largest",
        record="",
        seconds=sum(run.seconds for run in rest),
        peak_rss_bytes=max(run.peak_rss_bytes for run in rest),
    )
    return [*ordered[:MOST_STAGES], others]


def spread(times: Spread) -> str:
    """Median and extremes: `38 ms (36 to 44)`."""
    low, high = units.milliseconds(times.min_ms), units.milliseconds(times.max_ms)
    return f"{units.milliseconds(times.median_ms)} ms" + (f" ({low} to {high})" if times.runs > 1 else "")


def _stage_part(run: StageRun, value: float) -> Part:
    return Part("stage", value, "", colour_of(run.subject))


def _about(timing: RouteTiming) -> str:
    return f"{timing.model}, {timing.task}, {timing.request}"


def _ms(value: float) -> str:
    return f"{value:g} ms"
