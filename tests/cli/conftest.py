"""The command line as a test calls it, and a deployment to call it on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from msao_compile.cli.app import main

from . import fixtures


@dataclass(frozen=True)
class Ran:
    """What one call left: exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout; anything beside it is an error here."""
        found: dict[str, Any] = json.loads(self.out)
        return found


Cli = Callable[..., Ran]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run the command line in this process."""

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def deployment(tmp_path: Path) -> Path:
    """The synthetic deployment in a folder of its own."""
    folder = tmp_path / "deployments" / "pictures-and-questions"
    folder.mkdir(parents=True)
    return fixtures.deployment(folder)
