"""Whether one graph serves a medium alone and beside others: a model may send it through other weights there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from unittest.mock import patch

from torch import nn

from msao_compile.errors import UnsupportedFamily
from msao_compile.families.examples import Medium
from msao_compile.manifest.schema import ENCODERS
from msao_compile.runtime.session import NOUNS
from msao_compile.symbolic import NO_CHECKS


def refuse_other_ways(
    model: nn.Module, together: Callable[[], object], alone: Mapping[str, Callable[[], object]]
) -> None:
    """Compare the modules that a request of all media enters with those that one of each medium alone does.

    `together` and `alone[modality]` run the model.

    Raises:
        UnsupportedFamily: a medium alone enters a module that it does not enter beside the others.
    """
    if len(alone) < 2:
        return
    met = entered(model, together)
    for modality, request in alone.items():
        other = next((path for path in entered(model, request) if path not in met), None)
        if other is not None:
            beside = " or ".join(f"{NOUNS[name]}s" for name in alone if name != modality)
            components = " or ".join(dict.fromkeys(ENCODERS[name] for name in sorted(alone)))
            raise UnsupportedFamily(
                f"{modality} alone goes through {other}, which a request with {beside} as well does not, and one graph "
                f"has to serve both: leave out {components} ([export] exclude)"
            )


def refuse_heard_along(name: str, media: Iterable[Medium]) -> None:
    """What is heard along with the text has a feature for each token, of the answer too.

    Raises:
        UnsupportedFamily: a medium is such a one.
    """
    for medium in media:
        if medium.tokens and medium.placeholder is None:
            raise UnsupportedFamily(
                f"{name} takes a feature of its {medium.modality} with every token that it decodes, so that each step "
                "of an answer needs more of it: media are encoded before an answer here, and not along with it"
            )


def entered(model: nn.Module, run: Callable[[], object]) -> list[str]:
    """Paths of modules with weights that are entered, each layer of a stack as one: what is in it may not be run."""
    stacks = {path: part for path, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part) > 1}
    layers = tuple(f"{path}.{index}" for path, part in stacks.items() for index in range(len(part)))
    inside = tuple(f"{path}." for path in layers)
    found: dict[str, None] = {}
    handles = []
    for path, part in model.named_modules():
        if not path.startswith(inside) and any(True for _ in part.parameters(recurse=path in layers)):
            handles.append(part.register_forward_pre_hook(lambda *_, path=path: found.setdefault(path)))
    try:
        with patch.dict(os.environ, NO_CHECKS):
            run()
    finally:
        for handle in handles:
            handle.remove()
    return list(found)
