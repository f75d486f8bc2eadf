"""A real sshd on loopback with a stand-in device behind it: its `python3` is this one, without this repository."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {root}/host
AuthorizedKeysFile {root}/user.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
PermitRootLogin yes
SetEnv PATH={root}/device:/usr/bin:/bin HOME={root}/home
"""
# What `ssh` finds first on a test's path: the real one with keys that belong to the test alone.
CLIENT = """#!/bin/sh
exec {ssh} -F none -o IdentityFile={root}/{key} -o IdentitiesOnly=yes -o UserKnownHostsFile={root}/known \
  -o StrictHostKeyChecking=yes "$@"
"""
PYTHON = """#!/bin/sh
exec {python} -P "$@"
"""


@dataclass(frozen=True)
class Device:
    """Where it listens, and the folders of both sides."""

    address: str
    root: Path

    def client(self, key: str = "user") -> Path:
        """A folder whose `ssh` reaches the device with a key."""
        place = self.root / f"client-{key}"
        place.mkdir(exist_ok=True)
        script(place / "ssh", CLIENT.format(ssh=shutil.which("ssh", path="/usr/bin:/bin"), root=self.root, key=key))
        return place


def missing() -> str | None:
    """Why no device can be had here."""
    if sshd() is None:
        return "sshd is not installed (apt-get install openssh-server)"
    return None if shutil.which("ssh") and shutil.which("ssh-keygen") else "the OpenSSH client is not installed"


def sshd() -> str | None:
    """sshd re-executes itself, so its whole path is needed."""
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@contextmanager
def running(root: Path) -> Iterator[Device]:
    """The device, until the end of the block."""
    for name in ("host", "user", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", root / name], check=True)
    for name in ("device", "home"):  # a home without a shell's settings, which would put another python3 first
        (root / name).mkdir()
    script(root / "device" / "python3", PYTHON.format(python=sys.executable))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (root / "known").write_text(f"[127.0.0.1]:{port} {(root / 'host.pub').read_text()}")
    (root / "config").write_text(CONFIG.format(port=port, root=root))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it gives up root's rights
    with (root / "log").open("wb") as log, subprocess.Popen(
        [str(sshd()), "-D", "-e", "-f", root / "config"], stdout=log, stderr=log
    ) as process:  # fmt: skip
        try:
            _wait(port, process, root / "log")
            yield Device(f"{getpass.getuser()}@127.0.0.1:{port}", root)
        finally:
            process.terminate()


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError(log.read_text())
