"""The entry of a kit says in one sentence what its Python lacks."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from msao_compile.runtime.kit import entry


def test_the_entry_is_parsed_by_the_oldest_python_that_a_device_may_have(packed_kit: Path) -> None:
    ast.parse((packed_kit / "kit.py").read_text(), feature_version=(3, 6))
    assert "from __future__ import annotations" not in (packed_kit / "kit.py").read_text()  # came with Python 3.7


def test_a_python_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert entry.lacks() == ""
    monkeypatch.setattr(sys, "version_info", (3, 8, 10))
    assert entry.lacks().startswith(f"kit.py needs Python 3.10 or newer, and {sys.executable} is 3.8: ")


def test_a_python_without_numpy_is_told_and_nothing_else_is_said(packed_kit: Path) -> None:
    command = [sys.executable, "-S", "-P", str(packed_kit / "kit.py")]  # without site packages
    done = subprocess.run(command, capture_output=True, text=True, env={}, cwd="/", check=False)
    assert (done.returncode, done.stderr) == (4, "")
    (line,) = done.stdout.splitlines()
    assert line == f"error: kit.py needs NumPy, which {sys.executable} does not have: install it for this Python"
