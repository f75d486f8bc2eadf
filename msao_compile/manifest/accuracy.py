"""How many questions models answer right, as targets run them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from msao_compile.manifest.engine import Dialect
from msao_compile.manifest.frozen import Frozen

Through = Literal["engine", "graph, not engine"]
"""What answered: the target's own engines, or ONNX Runtime with the graphs that those are made of."""


class Accuracy(Frozen):
    """Exact matches of one model in one dialect and its precisions, for all targets that run it so.

    `low` and `high` are the 95 % Wilson interval of `share`. `marks` says of each sample in order whether it was
    answered right, 1 or 0.
    """

    targets: tuple[str, ...]
    model: str
    dialect: Dialect
    precision: str
    through: Through
    right: int
    asked: int
    share: float
    low: float
    high: float
    marks: str


class AccuracyReport(Frozen):
    """Every target and model that could be asked, and why others could not, by target and model."""

    samples: str
    rows: tuple[Accuracy, ...]
    left_out: dict[str, str] = Field(default_factory=dict)
