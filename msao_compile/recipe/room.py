"""Whether a target can hold a model: its weights, its KV cache and a reserve against the memory of the device."""

from __future__ import annotations

import os
from dataclasses import dataclass

from msao_compile.recipe.targets import Target

GIB = 1 << 30
UNIFIED_RESERVE_BYTES = 2 * GIB
"""Of memory that CPU and GPU share: the system, the CUDA context, activations and the engine library."""
OWN_RESERVE_BYTES = GIB
"""Of a GPU's own memory, or of a machine that runs on its CPU: the context and activations."""
KV_ITEM_BYTES = {"fp32": 4}
"""The KV cache of every precision below fp32 has 16 bits."""


@dataclass(frozen=True)
class Room:
    """What one target would hold; `memory_bytes` and `free_bytes` are None where its memory is not known."""

    target: str
    """The recipe's name for it, or the catalogue's."""
    device: str
    precision: str
    weight_bytes: int
    kv_bytes: int
    reserve_bytes: int
    memory_bytes: int | None
    free_bytes: int | None
    """What is left; negative: what is missing."""
    fits: bool | None


def room(name: str, target: Target, precision: str, weight_bytes: int, kv_bytes: int, here_bytes: int | None) -> Room:
    """The room of one target; `here_bytes` is this machine's memory, which its CPU has. Of its GPU nothing is known."""
    own = None if target.memory_gib is None else int(target.memory_gib * GIB)
    memory = here_bytes if target.platform_kind == "cpu" else own
    shared = target.unified_memory and target.platform_kind != "cpu"
    reserve = UNIFIED_RESERVE_BYTES if shared else OWN_RESERVE_BYTES
    free = None if memory is None else memory - reserve - weight_bytes - kv_bytes
    return Room(
        target=name,
        device=target.target_id,
        precision=precision,
        weight_bytes=weight_bytes,
        kv_bytes=kv_bytes,
        reserve_bytes=reserve,
        memory_bytes=memory,
        free_bytes=free,
        fits=None if free is None else free >= 0,
    )


def memory_here() -> int | None:
    """Bytes of memory in this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def lack(needed_bytes: float) -> str | None:
    """What is missing here for a job that needs so much beside the system itself; None where it fits."""
    here = memory_here()
    if here is None or needed_bytes + OWN_RESERVE_BYTES <= here:
        return None
    return f"needs about {needed_bytes / GIB:.0f} GiB of memory where this machine has {here / GIB:.0f}"
