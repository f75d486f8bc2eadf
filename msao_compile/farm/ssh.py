"""A machine reached by the system's own `ssh`: send files that it lacks, run a command, fetch files; all resumable."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from msao_compile.errors import DamagedFile, InputError, MissingTool, StageError
from msao_compile.manifest.digest import sha256_file

UNREACHED = 255  # ssh's own exit code where there is no connection
SECONDS = 20
# Reads [path, sha256] pairs and prints those of files that are missing or have other bytes.
LACKING = """
import hashlib, json, os, sys
folder, found = sys.argv[1], []
os.makedirs(folder, exist_ok=True)
for path, digest in json.load(sys.stdin):
    have = hashlib.sha256()
    try:
        with open(os.path.join(folder, path), "rb") as stream:
            while block := stream.read(1 << 20):
                have.update(block)
    except OSError:
        have = None
    if have is None or have.hexdigest() != digest:
        found.append(path)
print(json.dumps(found))
"""


class Sent(Protocol):
    """A file to send, as `stages.kit.archive.Entry` is."""

    @property
    def path(self) -> str:
        """Where it goes, below the folder."""

    @property
    def sha256(self) -> str:
        """What its bytes are."""

    def add_to(self, archive: tarfile.TarFile) -> None:
        """Write it."""


@dataclass(frozen=True)
class Host:
    """`user@host` or any name that the user's ssh configuration knows, and a port where one is given."""

    name: str
    port: int | None = None

    @staticmethod
    def read(text: str) -> Host:
        """`user@host[:port]`.

        Raises:
            InputError: it is not of that form.
        """
        name, colon, port = text.rpartition(":") if text.count(":") == 1 else (text, "", "")
        if not name or name.startswith("-") or (colon and not (port.isdecimal() and 0 < int(port) < 65536)):
            raise InputError(f"--ssh {text}: give user@host or user@host:port")
        return Host(name, int(port) if colon else None)

    def command(self, words: str) -> list[str]:
        """The local command line that runs `words` in the other machine's shell; it asks no questions."""
        port = [] if self.port is None else ["-p", str(self.port)]
        options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={SECONDS}", "-o", "ServerAliveInterval=15"]
        return [_ssh(), *options, *port, "--", self.name, words]


def _ssh() -> str:
    found = shutil.which("ssh")
    if found is None:
        raise MissingTool("ssh is not installed here: install the OpenSSH client")
    return found


def push(host: Host, folder: str, entries: Iterable[Sent]) -> int:
    """Send what the folder there lacks or has with other bytes; gives how many files were sent.

    Raises:
        MissingTool: the machine is not reached, or has no python3. StageError: it fails there.
    """
    every = list(entries)
    asked = json.dumps([[entry.path, entry.sha256] for entry in every])
    words = f"python3 -c {shlex.quote(LACKING)} {_quoted(folder)}"
    done = subprocess.run(host.command(words), input=asked, capture_output=True, text=True, check=False)
    _check(host, done.returncode, done.stderr, "looking at what it has")
    lacking = set(json.loads(done.stdout.strip().splitlines()[-1]))
    missing = [entry for entry in every if entry.path in lacking]
    if missing:
        _send(host, folder, missing)
    return len(missing)


def _send(host: Host, folder: str, entries: list[Sent]) -> None:
    words = f"tar -xf - -C {_quoted(folder)}"
    with subprocess.Popen(host.command(words), stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdin is not None and process.stderr is not None  # both are pipes
            with tarfile.open(fileobj=process.stdin, mode="w|", format=tarfile.PAX_FORMAT) as archive:
                for entry in entries:
                    entry.add_to(archive)
            process.stdin.close()
        except BrokenPipeError:  # what it said is told below
            process.kill()
        said = b"".join(process.stderr or ()).decode(errors="replace")
    _check(host, process.returncode, said, "sending the kit")


def stream(host: Host, folder: str, words: str, tell: Callable[[str], None]) -> int:
    """Run a command in the folder there and tell each line; gives its exit code.

    Raises:
        MissingTool: the machine is not reached.
    """
    command = host.command(f"cd {_quoted(folder)} && {words}")
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        last = ""
        for line in process.stdout or ():
            last = line.decode(errors="replace").rstrip()
            tell(last)
    if process.returncode == UNREACHED:
        _check(host, UNREACHED, last, "running the kit")
    return process.returncode


def fetch(host: Host, there: str, here: Path, sha256: str | None = None) -> bool:
    """Bring one file, whole or not at all; False where the file here has these bytes already.

    Raises:
        StageError: it is not there, or cannot be written here. DamagedFile: other bytes than promised arrived.
        MissingTool: the machine is not reached.
    """
    if sha256 is not None and here.is_file() and sha256_file(here) == sha256:
        return False
    partial = here.with_name(f".{here.name}.partial")
    try:
        here.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            done = _copied(host, there, file)
        _check(host, done.returncode, done.stderr.decode(errors="replace"), f"fetching {there}")
        if sha256 is not None and (found := sha256_file(partial)) != sha256:
            raise DamagedFile(f"{there} on {host.name}: its SHA-256 is {found} where the receipt says {sha256}")
        os.replace(partial, here)
    except OSError as error:
        raise StageError(f"{here}: cannot be written ({error.strerror}); choose another place") from error
    finally:
        partial.unlink(missing_ok=True)
    return True


def _copied(host: Host, there: str, file: IO[bytes]) -> subprocess.CompletedProcess[bytes]:
    command = host.command(f"cat {_quoted(there)}")
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.PIPE, check=False)


def _quoted(path: str) -> str:
    """A path for the other machine's shell; `~/` stays its home."""
    return f"~/{shlex.quote(path[2:])}" if path.startswith("~/") else shlex.quote(path)


def _check(host: Host, code: int, said: str, doing: str) -> None:
    words = " ".join(said.split())[-300:] or "it said nothing"
    if code == UNREACHED:
        raise MissingTool(
            f"{host.name} is not reached by ssh ({words}); try `ssh {host.name}` yourself, it must ask no questions"
        )
    if code:
        raise StageError(f"{host.name}: {doing} failed there with exit {code} ({words}); run this again, it continues")
