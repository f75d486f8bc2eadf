"""`inspect` and `schema`: look inside anything this project reads or writes."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from msao_compile.cli import draw, units
from msao_compile.cli.options import Json, Quiet
from msao_compile.cli.talk import Talk, talk_of
from msao_compile.errors import DamagedFile


class SchemaName(StrEnum):
    """The files whose JSON Schema can be printed."""

    RECIPE = "recipe"
    DEPLOYMENT = "deployment"


def inspect(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A deployment, a recipe, a checkpoint, a store, an engine or an .onnx file.",
            show_default=False,
        ),
    ],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what a path is and what is in it; every digest of a deployment or of a store is verified."""
    from msao_compile.cli.contents import look_into

    talk = talk_of(context, as_json, quiet)
    found = look_into(path)
    talk.reply(found.facts, lambda: draw_sheets(found.title, found.sheets))
    if found.faults:
        more = f" ({units.plural(len(found.faults) - 1, 'more file')} damaged too)" if len(found.faults) > 1 else ""
        raise DamagedFile(found.faults[0] + more)
    if found.remark:
        talk.say(found.remark)


def draw_sheets(title: str, sheets: tuple[draw.Sheet, ...]) -> None:
    """A title, and one table after the other."""
    draw.line(title)
    for sheet in sheets:
        draw.line("")
        draw.table(sheet.headers, sheet.rows, sheet.numbers)


def schema(
    context: typer.Context,
    name: Annotated[SchemaName, typer.Argument(help="Which file's schema.", show_default=False)],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print the JSON Schema of a recipe or of a deployment.json, for editors and other programs."""
    talk: Talk = talk_of(context, as_json, quiet)
    found = _recipe_schema() if name is SchemaName.RECIPE else _deployment_schema()
    talk.reply(found, lambda: draw.line(json.dumps(found, indent=1)))


def _recipe_schema() -> dict[str, object]:
    from msao_compile.recipe.read import json_schema

    return json_schema()


def _deployment_schema() -> dict[str, object]:
    from msao_compile.manifest.schema import Deployment

    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Deployment.model_json_schema()}
