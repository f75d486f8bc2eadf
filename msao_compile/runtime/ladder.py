"""How far an engine was proven: from `deferred` to `qualified`; a step that was not done is no pass."""

from __future__ import annotations

from collections.abc import Mapping

LADDER = ("deferred", "built", "ran", "parity", "qualified")
"""Each only after the ones before it."""
PHASES = ("build", "run", "parity", "measure")
"""What takes an engine from each rung to the next."""
DONE = "done"
STAND_IN = "onnxruntime"
"""The runner that runs the graph and not the engine: whatever it finds says nothing of the engine."""


def status(verdicts: Mapping[str, str], runner: str) -> str:
    """The rung that these verdicts by phase prove; the first one that is not `done` ends the climb."""
    proven = 0
    for phase in PHASES:
        if verdicts.get(phase) != DONE:
            break
        proven += 1
    return LADDER[min(proven, 1) if runner == STAND_IN else proven]
