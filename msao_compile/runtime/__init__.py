"""The light runtime: load a deployment and ask it. Everything heavy is imported by the first `load`, not before."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from msao_compile.runtime.answer import Answer, Piece, Timing
    from msao_compile.runtime.api import Runtime
    from msao_compile.runtime.policy import Wishes
    from msao_compile.runtime.wire.kserve.options import LinkOptions

__all__ = ["Answer", "Piece", "Runtime", "Timing", "Wishes", "load"]
_HOMES = {"Runtime": "api", "Answer": "answer", "Piece": "answer", "Timing": "answer", "Wishes": "policy"}


def load(
    folder: str | os.PathLike[str],
    cloud: str | None = None,
    verify: bool = True,
    trusted_keys: str | os.PathLike[str] | None = None,
    cloud_options: LinkOptions | None = None,
    calibrated: float | None = None,
    wishes: Wishes | None = None,
) -> Runtime:
    """Open a deployment folder; see `msao_compile.runtime.api.load`."""
    from msao_compile.runtime import api

    return api.load(folder, cloud, verify, trusted_keys, cloud_options, calibrated, wishes)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
