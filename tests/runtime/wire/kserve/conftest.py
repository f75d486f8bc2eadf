"""A real Triton that answers as the other clouds of these tests do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from answering import INPUTS
from building import ROOT
from tritons import serving

from msao_compile.runtime.serve.triton.config import config_text

MODEL = f"""
import sys

sys.path[:0] = {[str(ROOT), str(ROOT / "tests")]!r}

from answering import INPUTS, Answering
from msao_compile.runtime.serve.cloud.served import Served
from msao_compile.runtime.serve.triton.model import ServedInTriton


class TritonPythonModel(ServedInTriton):
    async def open(self, folder):
        return Served("m", Answering().handle, INPUTS)
"""


@pytest.fixture(scope="session")
def triton_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The gRPC port of a Triton whose one model keeps the contract without a model."""
    folder = tmp_path_factory.mktemp("triton")
    model = folder / "repository" / "m"
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.py").write_text(MODEL)
    (model / "config.pbtxt").write_text(config_text("m", INPUTS))
    with serving(folder / "repository", folder) as port:
        yield port
