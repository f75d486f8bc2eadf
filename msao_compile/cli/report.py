"""`report`: one self-contained page with pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msao_compile.cli import draw, units
from msao_compile.cli.options import DeploymentFolder, Json, Quiet, unset
from msao_compile.cli.talk import talk_of
from msao_compile.errors import InputError


def report(
    context: typer.Context,
    deployment: DeploymentFolder,
    output: Annotated[
        Path | None, unset("FILE", "The page to write; default: report.html in DEPLOYMENT.", "--output", "-o")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write one HTML page about a deployment: sizes, sharing, proofs, times and bytes; it needs no network."""
    talk = talk_of(context, as_json, quiet)
    page = output or deployment / "report.html"
    size_bytes = write_report(deployment, page)
    facts = {"report": str(page), "size_bytes": size_bytes}
    talk.reply(facts, lambda: draw.line(str(page)))
    talk.say(f"one page, {units.size(size_bytes)}, nothing in it is fetched from a network")


def write_report(deployment: Path, page: Path) -> int:
    """Write the page about a deployment folder and give its size in bytes.

    Raises:
        DeploymentError: the manifest or a piece of evidence cannot be read.
        InputError: the page cannot be written there.
    """
    from msao_compile.cli.page.render import render
    from msao_compile.cli.page.source import read_source

    content = render(read_source(deployment)).encode()
    try:
        page.write_bytes(content)
    except OSError as error:
        raise InputError(f"{page}: cannot be written ({error.strerror}); choose another name with -o") from error
    return len(content)
