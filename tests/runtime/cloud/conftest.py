"""Tiny models that a cloud serves and an edge drafts with, made once for these tests."""

from __future__ import annotations

import pytest
import tiny

from msao_compile.runtime.session import ModelSession


@pytest.fixture(scope="session")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> ModelSession:
    """The cloud's model, whose decoder runs rows side by side."""
    return tiny.session(tmp_path_factory.mktemp("verifier"))
