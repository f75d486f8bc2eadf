"""The page loads nothing from elsewhere, and its policy allows exactly what it holds."""

from __future__ import annotations

import base64
import hashlib
import re

from starlette.testclient import TestClient


def test_the_page_needs_nothing_but_itself(client: TestClient) -> None:
    text = client.get("/").text
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)|https?://|@import|url\(""", text)
    assert not re.findall(r"\son\w+=|\sstyle=|innerHTML", text)


def test_the_policy_allows_the_pages_own_script_and_no_other(client: TestClient) -> None:
    reply = client.get("/")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for tag in ("script", "style"):
        (block,) = re.findall(f"<{tag}>(.*?)</{tag}>", reply.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
