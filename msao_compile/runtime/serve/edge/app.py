"""The application: its paths, and the gate around them."""

from __future__ import annotations

import time
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from msao_compile.runtime.api import Runtime
from msao_compile.runtime.serve.edge import page, replies
from msao_compile.runtime.serve.edge.account import CONTENT_TYPE, Metrics
from msao_compile.runtime.serve.edge.chat import Service, completions
from msao_compile.runtime.serve.edge.content import Sources
from msao_compile.runtime.serve.edge.errors import Fault, Refusal, encode
from msao_compile.runtime.serve.edge.gate import Admission, Gate, not_found
from msao_compile.runtime.serve.edge.limits import Door, Limits
from msao_compile.runtime.serve.edge.offers import Offers


def application(runtime: Runtime, admission: Admission, limits: Limits, files: Path | None = None) -> Starlette:
    """The ASGI application of one deployment; every model that can run here is opened now.

    Args:
        runtime: a loaded deployment.
        admission: who may come in.
        limits: bounds of requests.
        files: pictures may be read below this folder; None reads none.

    Raises:
        MsaoError: as `Offers`.
    """
    door = Door(limits.requests)
    service = Service(runtime, Offers(runtime), Sources(limits, files), limits, door, Metrics(door))
    app = Starlette(
        routes=[
            Route("/", page.show),
            Route("/healthz", _healthy),
            Route("/readyz", _ready),
            Route("/metrics", _metrics),
            Route("/v1/models", _models),
            Route("/v1/models/{name:path}", _model),
            Route("/v1/chat/completions", completions, methods=["POST"]),
        ],
        middleware=[Middleware(Gate, admission=admission, metrics=service.metrics)],
        exception_handlers={HTTPException: not_found},
    )
    app.router.redirect_slashes = False
    app.state.service = service
    app.state.created = int(time.time())
    return app


async def _healthy(_: Request) -> Response:
    return _json({"status": "alive"})


async def _ready(request: Request) -> Response:
    service: Service = request.app.state.service
    if service.door.draining:
        raise Refusal(Fault(503, "this server is shutting down: send requests elsewhere", code="shutting_down"))
    return _json({"status": "ready", "absent": {name: str(error) for name, error in service.offers.absent.items()}})


async def _metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type=CONTENT_TYPE)


async def _models(request: Request) -> Response:
    service: Service = request.app.state.service
    return _json(
        replies.models(
            {name: service.offers.routes_of(name) for name in service.offers.names}, request.app.state.created
        )
    )


async def _model(request: Request) -> Response:
    name, service = request.path_params["name"], request.app.state.service
    return _json(replies.models({name: service.offers.routes_of(name)}, request.app.state.created)["data"][0])


def _json(content: object) -> Response:
    return Response(encode(content), media_type="application/json")
