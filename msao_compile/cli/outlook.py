"""What `plan` says of engines to be: where each is built, what that takes, and whether its target can hold it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from msao_compile.cli import draw, units

if TYPE_CHECKING:
    from msao_compile.outlook import Outlook
    from msao_compile.pipeline import Plan

ENGINE_HEADERS = ("", "target", "engine", "precision", "dialect", "backend", "time", "peak memory", "note")
HOLDING_HEADERS = ("target", "device", "model", "precision", "weights", "KV cache", "reserve", "memory", "")
UNKNOWN = "?"


def facts(plan: Plan) -> dict[str, Any]:
    """What a program wants to know: every engine, and every model on every target."""
    return {
        "engines": [asdict(one) for one in plan.engines],
        "targets": [{"model": one.model, **asdict(one.room)} for one in plan.holdings],
    }


def show(plan: Plan) -> None:
    """Draw both tables."""
    if plan.engines:
        draw.line("")
        draw.table(ENGINE_HEADERS, [_engine_row(one) for one in plan.engines], frozenset({6, 7}))
    if plan.holdings:
        from msao_compile.cli.sketch import verdict

        rows = []
        for one in plan.holdings:
            room = one.room
            memory = "" if room.memory_bytes is None else units.size(room.memory_bytes)
            needs = map(units.size, (room.weight_bytes, room.kv_bytes, room.reserve_bytes))
            rows.append((room.target, room.device, one.model, room.precision, *needs, memory, verdict(room)))
        draw.line("")
        draw.table(HOLDING_HEADERS, rows, frozenset({4, 5, 6, 7}))


def objections(plan: Plan) -> Iterator[str]:
    """A sentence for each thing that a build would refuse or warn of."""
    from msao_compile.outlook import shortage

    for one in plan.engines:
        if one.type_lacking is not None:
            yield f"{one.subject} for {one.target}: a build refuses it, {one.type_lacking}"
        if one.memory_lacking is not None:
            yield f"{one.subject} for {one.target}: {one.memory_lacking}"
    yield from (sentence for held in plan.holdings if (sentence := shortage(held)) is not None)


def _engine_row(one: Outlook) -> tuple[str, ...]:
    lacking = [text for text in (one.type_lacking, one.memory_lacking) if text is not None]
    return (
        "refused" if one.type_lacking is not None else one.place,
        one.target,
        one.subject,
        one.precision,
        one.dialect,
        one.backend,
        UNKNOWN if one.seconds is None else units.seconds(one.seconds),
        UNKNOWN if one.peak_bytes is None else units.size(one.peak_bytes),
        "; ".join([*lacking, *([one.note] if one.note else [])]),
    )
