"""The picture of what is shared: models on the left, modules on the right, a line for each use."""

from __future__ import annotations

from dataclasses import dataclass

from msao_compile.cli import units
from msao_compile.cli.page.palette import colour_of
from msao_compile.cli.page.sections import ROLES
from msao_compile.cli.page.source import Source
from msao_compile.manifest.schema import Module

WIDTH = 440
MODEL_WIDTH = 122
MODULE_X = 215
MODULE_WIDTH = WIDTH - MODULE_X - 1
ROW = 44
BOX = 34
LONGEST_NAME = 13


@dataclass(frozen=True)
class Box:
    """A box with its place and two lines of text."""

    x: float
    y: float
    width: float
    height: float
    name: str
    note: str
    colour: int
    shared: bool


@dataclass(frozen=True)
class Line:
    """A use of a module by a model, as an SVG path."""

    path: str
    shared: bool


@dataclass(frozen=True)
class Network:
    """The whole picture, and what it says in words."""

    width: int
    height: int
    models: tuple[Box, ...]
    modules: tuple[Box, ...]
    lines: tuple[Line, ...]
    sentence: str


def network(source: Source) -> Network:
    """Models evenly spread beside their modules."""
    deployment = source.deployment
    rows = max(len(deployment.modules), len(deployment.models), 1)
    height = rows * ROW
    modules = {
        module.id: _module_box(index, module.component, module.weight_bytes, source.users(module.id))
        for index, module in enumerate(_ordered(source))
    }
    spread = height / max(len(deployment.models), 1)
    models = {
        model.name: Box(
            1, spread * (index + 0.5) - BOX / 2, MODEL_WIDTH, BOX, _short(model.name), ROLES[model.role], 0, False
        )
        for index, model in enumerate(deployment.models)
    }
    lines = tuple(
        Line(_curve(models[model.name], modules[module_id]), modules[module_id].shared)
        for model in deployment.models
        for module_id in model.components.values()
    )
    return Network(WIDTH, height, tuple(models.values()), tuple(modules.values()), lines, _sentence(source))


def _ordered(source: Source) -> list[Module]:
    # A module stands near the middle of its users, so that few lines cross; shared ones end up between the models.
    place = {model.name: index for index, model in enumerate(source.deployment.models)}

    def middle(module: Module) -> float:
        users = [place[name] for name in source.users(module.id)]
        return sum(users) / len(users) if users else len(place)

    return sorted(source.deployment.modules, key=middle)


def _module_box(index: int, component: str, weight_bytes: int, users: tuple[str, ...]) -> Box:
    note = units.size(weight_bytes)
    if len(users) > 1:
        note += f", shared by {len(users)} models"
    y = index * ROW + (ROW - BOX) / 2
    return Box(MODULE_X, y, MODULE_WIDTH, BOX, component, note, colour_of(component), len(users) > 1)


def _curve(model: Box, module: Box) -> str:
    start, end = model.x + model.width, module.x
    y0, y1 = model.y + model.height / 2, module.y + module.height / 2
    middle = (start + end) / 2
    return f"M{start:.0f} {y0:.1f} C{middle:.0f} {y0:.1f} {middle:.0f} {y1:.1f} {end:.0f} {y1:.1f}"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _sentence(source: Source) -> str:
    parts = [f"{model.name} is made of {', '.join(model.components)}" for model in source.deployment.models]
    shared = [module.component for module in source.deployment.modules if len(source.users(module.id)) > 1]
    return "; ".join(parts) + (f". Shared: {', '.join(shared)}." if shared else ". Nothing is shared.")
