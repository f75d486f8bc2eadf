"""`serve`: a deployment behind a socket, as the edge that people ask or as the cloud that edges ask."""

from __future__ import annotations

import json
import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from msao_compile.cli import draw
from msao_compile.cli.options import (
    Calibrated,
    CloudAddress,
    CloudPatience,
    CloudRoots,
    CloudToken,
    DeploymentFolder,
    Json,
    Quiet,
    Wish,
    link_options,
    unset,
    wishes_of,
)
from msao_compile.cli.serve_cloud import CloudAsked, serve_cloud
from msao_compile.cli.talk import talk_of
from msao_compile.errors import InputError

PORTS = {"edge": 8000, "cloud": 8001}


class Role(StrEnum):
    """The sides that can be served."""

    EDGE = "edge"
    CLOUD = "cloud"


def _count(metavar: str, words: str, least: int = 1) -> typer.models.OptionInfo:
    found: typer.models.OptionInfo = typer.Option(metavar=metavar, min=least, help=words)
    return found


def _seconds(words: str) -> typer.models.OptionInfo:
    found: typer.models.OptionInfo = typer.Option(metavar="S", min=0.0, help=words)
    return found


Port = Annotated[
    int | None,
    typer.Option(
        metavar="P", min=0, max=65535, show_default=False,
        help="Port, the cloud's of gRPC; 0 takes a free one. Without it 8000 for the edge, 8001 for the cloud.",
    ),
]  # fmt: skip
HttpPort = Annotated[int, typer.Option(metavar="P", min=0, max=65535, help="Cloud: port of HTTP and /metrics.")]
Anonymous = Annotated[bool, typer.Option("--allow-anonymous", help="Edge: answer other machines without a token.")]
Folder = Annotated[Path | None, unset("DIR", "Edge: read pictures as file: URLs below DIR.")]
ModelName = Annotated[str | None, unset("M", "Cloud: the model to serve, where it is not clear.")]
TokenFile = Annotated[Path | None, unset("FILE", "Ask for the bearer token in this file.", "--token-file")]
Certificate = Annotated[Path | None, unset("FILE", "Serve TLS with this PEM certificate.", "--tls-cert")]
Key = Annotated[Path | None, unset("FILE", "The certificate's PEM key, without a passphrase.", "--tls-key")]


def serve(
    context: typer.Context,
    deployment: DeploymentFolder,
    role: Annotated[Role, typer.Option(help="Which side this is.", show_default=False)],
    host: Annotated[str, typer.Option(metavar="H", help="Address to listen on.")] = "127.0.0.1",
    port: Port = None,
    http_port: HttpPort = 8002,
    cloud: CloudAddress = None,
    cloud_token_file: CloudToken = None,
    cloud_roots: CloudRoots = None,
    cloud_patience: CloudPatience = None,
    calibrated: Calibrated = None,
    wish: Wish = None,
    model: ModelName = None,
    token_file: TokenFile = None,
    allow_anonymous: Anonymous = False,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    allow_files: Folder = None,
    sessions: Annotated[int, _count("N", "Cloud: answers being written at once.")] = 16,
    connections: Annotated[int, _count("N", "Cloud: connections at once.")] = 256,
    max_requests: Annotated[int, _count("N", "Edge: requests at once; a model answers one at a time.")] = 8,
    max_body: Annotated[int, _count("BYTES", "Largest body of a request.")] = 32 * 2**20,
    max_pixels: Annotated[int, _count("N", "Largest picture.")] = 25_000_000,
    max_pictures: Annotated[int, _count("N", "Edge: most pictures in a request.", 0)] = 8,
    deadline: Annotated[float, _seconds("Seconds a request may take.")] = 120.0,
    drain: Annotated[float, _seconds("Seconds to finish after SIGTERM.")] = 30.0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Serve a deployment until SIGTERM or Ctrl-C; logs JSON to stderr.

    The edge answers OpenAI's clients and has a web page at /; with --cloud it asks a cloud where that pays. The cloud
    speaks KServe v2 (Open Inference Protocol) over gRPC and HTTP to many edges at once.
    """
    talk_of(context, as_json, quiet)
    chosen = PORTS[role] if port is None else port
    if role is Role.CLOUD:
        if cloud is not None or allow_files is not None or allow_anonymous or wish:
            raise InputError(
                "--cloud, --wish, --allow-files and --allow-anonymous belong to --role edge: leave them out"
            )
        asked = CloudAsked(
            deployment, model, host, chosen, http_port, token_file, tls_cert, tls_key, sessions, max_body, max_pixels,
            connections, deadline, drain,
        )  # fmt: skip
        serve_cloud(asked, as_json)
        return
    from msao_compile.runtime import load
    from msao_compile.runtime.serve.edge.account import log_as_json
    from msao_compile.runtime.serve.edge.limits import Limits
    from msao_compile.runtime.serve.edge.server import Listening
    from msao_compile.runtime.serve.edge.server import serve as serve_edge

    log_as_json(logging.WARNING if quiet else logging.INFO)

    def announce(url: str) -> None:
        draw.line(json.dumps({"listening": url}) if as_json else f"listening on {url}")

    limits = Limits(max_body, max_pixels, max_pictures, max_requests, max(deadline, 0.01), drain)
    where = Listening(host, chosen, token_file, allow_anonymous, tls_cert, tls_key, allow_files, limits)
    options = link_options(cloud, cloud_token_file, cloud_roots, cloud_patience)
    asked_for = wishes_of(wish, cloud)
    runtime = load(deployment, cloud=cloud, cloud_options=options, calibrated=calibrated, wishes=asked_for)
    serve_edge(runtime, where, announce)
