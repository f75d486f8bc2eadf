"""Fit a deployment's speculation, sureness and MAS on labelled samples, and show on others what that loses."""

from __future__ import annotations

from typing import Any


def run(arguments: dict[str, Any], on_progress: Any) -> dict[str, Any]:
    """The stage `whole.fit`, imported here so that who only applies a fit loads no model."""
    from msao_compile.stages.fit.whole import fit

    return fit(arguments, on_progress)
