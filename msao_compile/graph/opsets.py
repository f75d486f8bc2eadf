"""The operator set of each dialect, and the dialect in which its graphs are traced."""

from __future__ import annotations

from msao_compile.manifest.schema import Dialect

OPSETS: dict[Dialect, tuple[int, ...]] = {"portable": (20,), "scatter": (20, 24), "fused": (23,)}
"""Of `scatter`, what needs no later one keeps that of `portable`."""


def traced(dialect: Dialect) -> Dialect:
    """`scatter` is a portable graph whose state is updated in place afterwards."""
    return "portable" if dialect == "scatter" else dialect
