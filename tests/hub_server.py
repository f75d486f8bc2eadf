"""A Hugging Face Hub on loopback with one model: enough of its HTTP for a real client to resolve and to download."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class HubServer:
    """What the hub has of `org/tiny`: commits newest last, each a folder; and the requests that it saw."""

    url: str = ""
    commits: dict[str, Path] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of one request."""
        api, _, rest = path.partition("?")[0].partition("/org/tiny")
        if "/resolve/" in rest:
            _, _, revision, name = rest.split("/", 3)
            return self._file(revision, name)
        if api != "/api/models" or rest.split("/")[-1] not in (*self.commits, "main"):
            missing = "RevisionNotFound" if "/org/tiny" in path else "RepoNotFound"
            return 404, {"X-Error-Code": missing, "X-Error-Message": "not found"}, b"{}"
        revision = self._commit(rest.split("/")[-1])
        files = sorted(self.commits[revision].iterdir())
        if rest.startswith("/tree/"):
            told = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _sha(file)} for file in files
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(told).encode()
        siblings = [{"rfilename": file.name} for file in files]
        facts = {"id": "org/tiny", "modelId": "org/tiny", "sha": revision, "siblings": siblings, "tags": []}
        return 200, {"Content-Type": "application/json"}, json.dumps(facts).encode()

    def _commit(self, name: str) -> str:
        return list(self.commits)[-1] if name == "main" else name

    def _file(self, revision: str, name: str) -> tuple[int, dict[str, str], bytes]:
        file = self.commits[self._commit(revision)] / name
        return 200, {"ETag": f'"{_sha(file)}"', "X-Repo-Commit": self._commit(revision)}, file.read_bytes()


def _sha(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextmanager
def serving() -> Iterator[HubServer]:
    """A hub that answers until the block ends."""
    hub = HubServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = hub.answer(self.path)
            hub.seen.append(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
