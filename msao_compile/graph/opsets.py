"""The operator set of each dialect."""

from __future__ import annotations

from msao_compile.manifest.schema import Dialect

OPSETS: dict[Dialect, int] = {"portable": 20, "fused": 23}
