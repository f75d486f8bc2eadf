"""The gated delta rule with a symbolic sequence: a fixed number of chunks, as long as the sequence asks for.

Shapes: B batch, H heads, N chunks, C positions of a chunk, K key size, V value size.
"""

from __future__ import annotations

from typing import Any

import torch

CHUNKS, DEPTH = 16, 10
LONGEST = CHUNKS * (2**DEPTH - 2)
"""Positions that one call may have: a longer chunk's triangular system would not be solved to its end."""


def gated_delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    chunk_size: int = 64,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What transformers' `torch_chunk_gated_delta_rule` gives, for up to `LONGEST` positions of one row each.

    Takes [B, S, heads, size], decay `g` and `beta` [B, S, H], state [B, H, K, V]; gives [B, S, H, V] and the state.
    Exact up to rounding: the same equations (Yang et al. 2024, arXiv 2412.06464), the triangular system inverted by
    blocks that double, and chunks as long as the sequence asks for instead of ever more of one length.
    """
    kind, sequence = query.dtype, query.shape[1]
    groups = value.shape[2] // key.shape[2]
    if groups > 1:
        query, key = (part.repeat_interleave(groups, dim=2) for part in (query, key))
    if use_qk_l2norm_in_kernel:
        query, key = (part * torch.rsqrt((part * part).sum(-1, keepdim=True) + 1e-6) for part in (query, key))
    query = query * query.shape[-1] ** -0.5
    beta_NC1 = _chunked(beta.float()[..., None])
    query, key, value = (_chunked(part.float()) for part in (query, key, value))
    decay_NC = _chunked(g.float()[..., None])[..., 0].cumsum(-1)

    place = torch.arange(decay_NC.shape[-1])
    lower = place[:, None] >= place[None, :]
    between = (decay_NC[..., :, None] - decay_NC[..., None, :]).masked_fill(~lower, float("-inf")).exp()
    system = (key * beta_NC1) @ key.transpose(-1, -2) * between
    inverse = _inverse(system)
    new_values = inverse @ (value * beta_NC1)
    read_keys = inverse @ (key * beta_NC1 * decay_NC.exp()[..., None])
    attention = query @ key.transpose(-1, -2) * between
    queries = query * decay_NC.exp()[..., None]
    written = (key * (decay_NC[..., -1:] - decay_NC).exp()[..., None]).transpose(-1, -2)
    whole = decay_NC[..., -1].exp()[..., None, None]

    state = torch.zeros_like(written[:, :, 0] @ new_values[:, :, 0]) if initial_state is None else initial_state.float()
    outputs = []
    for index in range(CHUNKS):
        corrected = new_values[:, :, index] - read_keys[:, :, index] @ state
        outputs.append(queries[:, :, index] @ state + attention[:, :, index] @ corrected)
        state = state * whole[:, :, index] + written[:, :, index] @ corrected
    output = torch.cat(outputs, 2).index_select(2, torch.arange(sequence)).transpose(1, 2).to(kind)
    return output, state if output_final_state else None


def _chunked(tensor: torch.Tensor) -> torch.Tensor:
    """[B, S, H, X] as [B, H, N, C, X], zeros behind the end."""
    sequence = tensor.shape[1]
    length = sequence // CHUNKS + 2  # never 1, which torch would take for a fact
    rows = torch.cat([tensor, torch.zeros_like(tensor[:, :1])], 1)
    index = torch.arange(CHUNKS * length).clamp(max=sequence)
    chunks: torch.Tensor = rows.index_select(1, index).unflatten(1, (CHUNKS, length))
    return chunks.permute(0, 3, 1, 2, 4)


def _inverse(system: torch.Tensor) -> torch.Tensor:
    """Inverse of the unit lower triangular matrices whose entries below the diagonal are those of `system`.

    Blocks of 1, 2, 4, ... on the diagonal: inv [[A, 0], [C, B]] = [[inv A, 0], [-inv B C inv A, inv B]].
    """
    place = torch.arange(system.shape[-1])
    found = (place[:, None] == place[None, :]).to(system.dtype).expand_as(system)
    for step in range(DEPTH):
        block = 2**step
        row, column = place[:, None] // block, place[None, :] // block
        corner = (row // 2 == column // 2) & (row == column + 1)
        found = found - found @ torch.where(corner, system, 0.0) @ found
    return found


FUNCTIONS = {
    "torch_chunk_gated_delta_rule": gated_delta_rule,
    "torch_recurrent_gated_delta_rule": gated_delta_rule,
}
"""By the name that modeling files give it."""
