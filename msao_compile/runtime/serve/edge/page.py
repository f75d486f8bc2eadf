"""The page at `/`: one file that loads nothing else, and a policy under which it could not."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

HOME = Path(__file__).with_name("page.html")


@cache
def _page() -> tuple[str, dict[str, str]]:
    """The page and its headers: script and style are allowed by their digests, pictures from the page itself."""
    text = HOME.read_text("utf-8")
    policy = [
        "default-src 'none'", f"script-src {_digest(text, 'script')}", f"style-src {_digest(text, 'style')}",
        "img-src blob: data:", "connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
    ]  # fmt: skip
    return text, {"content-security-policy": "; ".join(policy), "referrer-policy": "no-referrer"}


def _digest(text: str, tag: str) -> str:
    (block,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'"


async def show(_: Request) -> Response:
    """The page."""
    text, headers = _page()
    return Response(text, headers=headers, media_type="text/html")
