"""`export`: a deployment in the form of another server."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from msao_compile.cli import draw
from msao_compile.cli.options import DeploymentFolder, Json, Quiet
from msao_compile.cli.talk import talk_of


class Format(StrEnum):
    """Servers that a deployment can be written for."""

    TRITON = "triton"


def export(
    context: typer.Context,
    deployment: DeploymentFolder,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="A folder that is new or empty.", show_default=False)
    ],
    form: Annotated[Format, typer.Option("--format", help="For which server.")] = Format.TRITON,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="M", help="The model to serve; else the one routes place in the cloud.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a model repository from which NVIDIA Triton serves the cloud side, to the same clients over grpc://."""
    from msao_compile.runtime.serve.triton.config import KEEPALIVE
    from msao_compile.stages.triton import write_repository

    talk = talk_of(context, as_json, quiet)
    folder = write_repository(deployment, model, output)
    facts = {"repository": str(output), "model": folder.name, "flags": [KEEPALIVE]}
    talk.reply(facts, lambda: draw.line(str(folder)))
    talk.say(f"start it with: tritonserver --model-repository={output} {KEEPALIVE}")
