"""Tiny models as a pair that is benched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pairs
import pytest

from msao_compile.bench.run import Pair, pair_of
from msao_compile.runtime import load
from msao_compile.runtime.session import ModelSession


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment that speculates; nobody writes to it."""
    return pairs.write(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="session")
def pair(words: Path) -> Pair:
    """Its two models."""
    return pair_of(load(words))


@pytest.fixture(scope="session")
def verifier(pair: Pair) -> ModelSession:
    """Of the two the one that a cloud serves."""
    return pair.verifier


@pytest.fixture
def copied(tmp_path: Path) -> Callable[..., Path]:
    """`copied(field=value)`: another such deployment, fields of its manifest replaced."""

    def made(**changed: Any) -> Path:
        return pairs.write(tmp_path / "copied", **changed)

    return made
