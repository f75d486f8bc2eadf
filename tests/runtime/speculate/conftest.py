"""A tiny verifier and a drafter that often says the same, made once for these tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from msao_compile.runtime.session import ModelSession


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSession, ModelSession]:
    """Drafter and verifier."""
    folder: Path = tmp_path_factory.mktemp("pair")
    return tiny.session(folder / "edge", "edge", shaken=0.12), tiny.session(folder / "cloud")
