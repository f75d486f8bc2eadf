"""What a build will run once it knows which modules there are, as far as its recipe alone tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msao_compile.chosen import ahead_of_time
from msao_compile.manifest.schema import Precision
from msao_compile.manifest.variants import RANGED
from msao_compile.recipe.schema import TargetChoice
from msao_compile.recipe.targets import find

EVERY = "every module"


def after_split(models: Sequence[str], targets: Mapping[str, TargetChoice]) -> Iterator[tuple[str, str, str | None]]:
    """Stage and subject of each kind of step that follows, in order; and for what only its device does, why."""
    on_cpu = {name: choice for name, choice in targets.items() if find(choice.device).platform_kind == "cpu"}
    for model in models:
        yield "load", f"{EVERY} of {model}", None
    for dialect in sorted({choice.graph_dialect for choice in targets.values()}):
        yield "export", f"{EVERY} ({dialect})", None
    lower = [(name, kind, which) for name, choice in targets.items() for kind, which in _lower(choice)]
    if any(kind in RANGED and name not in on_cpu for name, kind, _ in lower):
        yield from (("ranges", model, None) for model in models)
    quantised = {f"{which} ({targets[name].graph_dialect} {kind})": None for name, kind, which in lower}
    yield from (("quantize", subject, None) for subject in quantised)
    yield from (("weigh", f"{which} ({kind}) for {name}", None) for name, kind, which in lower if name in on_cpu)
    yield from (("parity", model, None) for model in models)
    for name, choice in targets.items():
        device = find(choice.device)
        if name in on_cpu:
            yield "build", f"{EVERY} for {name}", None
        elif ahead_of_time(device):
            yield "engine", f"{EVERY} for {name}", None
        else:
            yield "build", f"{EVERY} for {name}", f"{device.target_id} builds its engines with {device.engine_build}"
    if on_cpu:
        yield "measure", "every route", None


def _lower(choice: TargetChoice) -> Iterator[tuple[Precision, str]]:
    """Each precision of less than fp32 that a target asks for, and of which modules."""
    if isinstance(choice.precision, str):
        asked = {choice.precision: [EVERY]}
    else:
        asked = {}
        for component, kind in choice.precision.items():
            asked.setdefault(kind, []).append(component)
    yield from ((kind, ", ".join(which)) for kind, which in asked.items() if kind != "fp32")
