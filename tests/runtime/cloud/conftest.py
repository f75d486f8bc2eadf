"""Tiny models that a cloud serves and an edge drafts with, made once for these tests."""

from __future__ import annotations

import asyncio

import pytest
import tiny

from msao_compile.runtime.cloud.service import CloudLimits, CloudService
from msao_compile.runtime.session import ModelSession

from .talk import LIMIT, PROMPT, Run, alone


@pytest.fixture(scope="session")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> ModelSession:
    """The cloud's model, whose decoder runs rows side by side."""
    return tiny.session(tmp_path_factory.mktemp("verifier"))


@pytest.fixture
def serve(verifier: ModelSession) -> Run:
    """`serve(work)`: what `work` gives with a fresh cloud of three sessions."""
    return lambda work: asyncio.run(asyncio.wait_for(work(CloudService(verifier, CloudLimits(sessions=3))), 60))


@pytest.fixture(scope="session")
def answer(verifier: ModelSession) -> list[int]:
    """What the verifier says by itself; nobody changes it."""
    found = alone(verifier, PROMPT, LIMIT)
    assert len(found) == LIMIT  # no stop token on the way
    return found
