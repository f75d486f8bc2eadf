"""The application of the tiny deployment, spoken to in this process."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from msao_compile.runtime import load
from msao_compile.runtime.api import Runtime
from msao_compile.runtime.serve.edge.app import application
from msao_compile.runtime.serve.edge.chat import Service
from msao_compile.runtime.serve.edge.gate import Admission
from msao_compile.runtime.serve.edge.limits import Limits

LIMITS = Limits(body_bytes=60_000, pixels=96 * 64, pictures=2, requests=2, deadline_s=60)
LOCAL = "http://localhost"
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def runtime(deployment: Path) -> Runtime:
    """The tiny deployment, loaded once."""
    return load(deployment)


@pytest.fixture(scope="session")
def app(runtime: Runtime, picture: Path) -> Starlette:
    """Open on loopback, with files below the picture's folder."""
    return application(runtime, Admission(), LIMITS, picture.parent)


@pytest.fixture(scope="session")
def client(app: Starlette) -> Iterator[TestClient]:
    """One client in one event loop."""
    with TestClient(app, LOCAL) as found:
        yield found


@pytest.fixture
def service(app: Starlette) -> Service:
    """What its requests share."""
    found: Service = app.state.service
    return found


@pytest.fixture(scope="session")
def data_url(picture: Path) -> str:
    """The picture in itself."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def body(content: object = "what color is the circle?", **more: Any) -> dict[str, Any]:
    """A chat request of one user message and few tokens."""
    return {"model": "vqa", "max_tokens": 4, "messages": [{"role": "user", "content": content}], **more}


def image(url: str) -> dict[str, Any]:
    """A picture as a part of a message."""
    return {"type": "image_url", "image_url": {"url": url}}
