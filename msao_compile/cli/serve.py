"""`serve`: a deployment behind a socket."""

from __future__ import annotations

import json
import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from msao_compile.cli import draw
from msao_compile.cli.options import DeploymentFolder, Json, Quiet
from msao_compile.cli.talk import talk_of


class Role(StrEnum):
    """The sides that can be served."""

    EDGE = "edge"


def _file(name: str, words: str) -> typer.models.OptionInfo:
    found: typer.models.OptionInfo = typer.Option(name, metavar="FILE", help=words, show_default=False)
    return found


def serve(
    context: typer.Context,
    deployment: DeploymentFolder,
    role: Annotated[Role, typer.Option(help="Which side this is.", show_default=False)],
    host: Annotated[str, typer.Option(metavar="H", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="P", min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    token_file: Annotated[Path | None, _file("--token-file", "Ask for the bearer token in this file.")] = None,
    allow_anonymous: Annotated[
        bool, typer.Option("--allow-anonymous", help="Answer other machines without a token.")
    ] = False,
    tls_cert: Annotated[Path | None, _file("--tls-cert", "Serve HTTPS with this PEM certificate.")] = None,
    tls_key: Annotated[Path | None, _file("--tls-key", "The certificate's PEM key, without a passphrase.")] = None,
    allow_files: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Read pictures given as file: URLs below this folder.", show_default=False),
    ] = None,
    max_requests: Annotated[
        int, typer.Option(metavar="N", min=1, help="Requests inside at once; each model answers one at a time.")
    ] = 8,
    max_body: Annotated[int, typer.Option(metavar="BYTES", min=1, help="Largest body of a request.")] = 32 * 2**20,
    max_pixels: Annotated[int, typer.Option(metavar="N", min=1, help="Largest picture.")] = 25_000_000,
    max_pictures: Annotated[int, typer.Option(metavar="N", min=0, help="Most pictures in a request.")] = 8,
    deadline: Annotated[float, typer.Option(metavar="S", min=0.01, help="Seconds a request may take.")] = 120.0,
    drain: Annotated[float, typer.Option(metavar="S", min=0.0, help="Seconds to finish after SIGTERM.")] = 30.0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Serve a deployment to OpenAI's clients, with a web page at /, until SIGTERM or Ctrl-C; logs JSON to stderr."""
    from msao_compile.runtime import load
    from msao_compile.runtime.serve.edge.account import log_as_json
    from msao_compile.runtime.serve.edge.limits import Limits
    from msao_compile.runtime.serve.edge.server import Listening
    from msao_compile.runtime.serve.edge.server import serve as serve_edge

    talk_of(context, as_json, quiet)
    log_as_json(logging.WARNING if quiet else logging.INFO)

    def announce(url: str) -> None:
        draw.line(json.dumps({"listening": url}) if as_json else f"listening on {url}")

    limits = Limits(max_body, max_pixels, max_pictures, max_requests, deadline, drain)
    where = Listening(host, port, token_file, allow_anonymous, tls_cert, tls_key, allow_files, limits)
    serve_edge(load(deployment), where, announce)
