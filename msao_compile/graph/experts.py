"""Experts that a model calls one after another in a loop over data, as one product for all of them."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

TAKEN = ["self", "hidden_states", "top_k_index", "top_k_weights"]
KINDS = {"has_gate": True, "has_bias": False, "has_post_expert_norm": False, "is_transposed": False}
"""What transformers writes on the experts that it switches itself, and asks of those that it is to compute at once."""


@contextlib.contextmanager
def at_once(model: nn.Module) -> Iterator[None]:
    """Compute experts at once that transformers does not switch to that itself, inside this block."""
    from transformers.integrations.moe import batched_mm_experts_forward

    with contextlib.ExitStack() as stack:
        alike: dict[type, bool] = {}
        for part in model.modules():
            kind = type(part)
            if kind not in alike:
                alike[kind] = _is_loop(part) and _gives_the_same(part, batched_mm_experts_forward)
            if alike[kind]:
                for name, value in {**KINDS, "_is_expert_parallel": False}.items():
                    stack.enter_context(patch.object(part, name, value, create=True))
                stack.enter_context(patch.object(part, "forward", partial(batched_mm_experts_forward, part)))
        yield


def _is_loop(part: nn.Module) -> bool:
    weights = dict(part.named_parameters(recurse=False))
    stacked = set(weights) == {"gate_up_proj", "down_proj"} and all(value.ndim == 3 for value in weights.values())
    return (
        stacked
        and hasattr(part, "_apply_gate")
        and not hasattr(part, "is_transposed")
        and list(inspect.signature(type(part).forward).parameters) == TAKEN
    )


def _gives_the_same(part: nn.Module, function: Any) -> bool:
    """Seen by trying, with few and small experts: other layouts of the weights give other numbers."""
    chance = torch.Generator().manual_seed(0)
    small = copy.copy(part)
    sizes = {"gate_up_proj": (3, 8, 5), "down_proj": (3, 5, 4)}
    small._parameters = {
        name: nn.Parameter(torch.rand(*size, generator=chance), requires_grad=False) for name, size in sizes.items()
    }
    vars(small).update(KINDS, num_experts=3, _is_expert_parallel=False)
    places = torch.tensor([[0, 2], [1, 0], [2, 1], [1, 2]])
    given = torch.rand(4, 5, generator=chance), places, torch.rand(4, 2, generator=chance)
    with torch.no_grad():
        try:
            return bool(torch.allclose(small.forward(*given), function(small, *given)))
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            return False
