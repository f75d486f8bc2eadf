"""A recorded reference of a model that decodes nothing: each of its outputs, and the logits of one that has a head."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from msao_compile.errors import InputError
from msao_compile.manifest.variants import Kinds
from msao_compile.stages import parity

LOGITS = np.linspace(-1, 1, 12, dtype=np.float32).reshape(1, 4, 3)


def rows(monkeypatch: pytest.MonkeyPatch, ours: dict[str, Any], held: dict[str, Any]) -> dict[str, str]:
    monkeypatch.setattr(parity, "forward", lambda session, inputs: ours)
    about = ("m", Kinds("fused", (("classifier", "fp32"),)), {"fp32": {"max_abs": 1e-3}})
    return {row.subject: row.verdict for row in parity._compared(SimpleNamespace(), held, {}, about)}


def test_logits_of_a_model_that_decodes_nothing_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows(monkeypatch, {"logits": LOGITS}, {"logits": LOGITS}) == {"logits of the reference": "PASS"}
    assert rows(monkeypatch, {"logits": LOGITS + 1}, {"logits": LOGITS}) == {"logits of the reference": "FAIL"}


def test_what_stands_for_logits_where_there_are_none_is_compared_by_its_name_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = {"logits": LOGITS, "out.embeds": LOGITS}
    assert rows(monkeypatch, {"embeds": LOGITS}, held) == {"embeds of the reference": "PASS"}
    with pytest.raises(InputError, match=r"its embeds have shape \(1, 4, 3\) where its inputs give \(4, 3\)"):
        rows(monkeypatch, {"embeds": LOGITS[0]}, held)
