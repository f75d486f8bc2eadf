"""`serve --role cloud`: a deployment's cloud model behind gRPC and HTTP."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msao_compile.cli import draw
from msao_compile.errors import InputError, MissingTool

if TYPE_CHECKING:
    from msao_compile.runtime.cloud.service import CloudLimits
    from msao_compile.runtime.serve.cloud.launch import CloudOptions, CloudServer


@dataclass(frozen=True)
class CloudAsked:
    """What the command line says of a cloud server."""

    deployment: Path
    model: str | None
    host: str
    port: int
    http_port: int
    token_file: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    sessions: int
    max_body: int
    max_pixels: int
    connections: int
    deadline: float
    drain: float


def serve_cloud(asked: CloudAsked, as_json: bool) -> None:
    """Serve until SIGTERM or Ctrl-C, then let running requests end; logs JSON to stderr.

    Raises:
        InputError: an option is wrong, or the deployment has no such model. DeploymentError: it cannot be used.
        MissingTool: a library is not installed.
    """
    try:
        from msao_compile.runtime.cloud.service import CloudLimits
        from msao_compile.runtime.serve.cloud.logs import log_as_json
    except ModuleNotFoundError as error:
        raise MissingTool(f"{error.name} is not installed: pip install 'msao-compile[serve]'") from error
    log_as_json()
    limits = CloudLimits(sessions=asked.sessions, request_bytes=asked.max_body, picture_pixels=asked.max_pixels)
    asyncio.run(_serve(asked, _options(asked), limits, as_json))


async def _serve(asked: CloudAsked, options: CloudOptions, limits: CloudLimits, as_json: bool) -> None:
    from msao_compile.runtime.serve.cloud.launch import CloudServer, run_until_signal
    from msao_compile.runtime.serve.cloud.opening import open_deployment

    _, served = open_deployment(asked.deployment, asked.model, limits)

    def announce(server: CloudServer) -> None:
        secure = "s" if options.certificate else ""
        told = {
            "model": served.name,
            "grpc": f"grpc{secure}://{options.host}:{server.port}",
            "http": f"http{secure}://{options.host}:{server.http_port}",
            "port": server.port,
            "http_port": server.http_port,
        }
        draw.line(json.dumps(told) if as_json else f"{told['model']} at {told['grpc']} and {told['http']}")

    await run_until_signal(CloudServer(served, options), announce)


def _options(asked: CloudAsked) -> CloudOptions:
    from msao_compile.runtime.serve.cloud.launch import CloudOptions
    from msao_compile.runtime.serve.cloud.security import Certificate
    from msao_compile.runtime.serve.cloud.served import Bounds

    if (asked.tls_cert is None) != (asked.tls_key is None):
        raise InputError("a certificate and its key belong together: give both --tls-cert and --tls-key, or neither")
    certificate = Certificate(asked.tls_cert, asked.tls_key) if asked.tls_cert and asked.tls_key else None
    return CloudOptions(
        asked.host, asked.port, asked.http_port, asked.token_file, certificate,
        Bounds(asked.max_body, asked.connections, seconds=asked.deadline, drain_s=asked.drain),
    )  # fmt: skip
