"""The light runtime: load a deployment and ask it. Heavy parts are imported at the first `load`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from msao_compile.runtime.answer import Answer, Piece, Timing
    from msao_compile.runtime.api import Runtime, load

__all__ = ["Answer", "Piece", "Runtime", "Timing", "load"]
_HOMES = {"load": "api", "Runtime": "api", "Answer": "answer", "Piece": "answer", "Timing": "answer"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
