"""Recurrences over a symbolic sequence, the gated delta rule and Mamba-2: a fixed number of chunks, as long as the
sequence asks for.

Shapes: B batch, S positions, H heads, N chunks, C positions of a chunk, K key size, V value size.
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

    between = _between(decay_NC)
    system = (key * beta_NC1) @ key.transpose(-1, -2) * between
    inverse = _inverse(system)
    new_values = inverse @ (value * beta_NC1)
    read_keys = inverse @ (key * beta_NC1 * decay_NC.exp()[..., None])
    output, state = _scanned(query, key, new_values, decay_NC, between, initial_state, read_keys)
    return _joined(output, sequence).to(kind), state if output_final_state else None


def mamba2(
    hidden_states: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk_size: int,
    D: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    **_: Any,
) -> Any:
    """What transformers' `mamba2_chunk_scan` gives: the state space dual of Dao and Gu 2024, arXiv 2405.21060.

    Takes [B, S, H, V], steps `dt` [B, S, H], decay `A` and skip `D` [H], `B` and `C` [B, S, groups, K] and state
    [B, H, V, K]; gives [B, S, H, V], and with `return_final_states` the state. In the words of attention `C` are
    queries, `B` keys and the steps of `hidden_states` values. A single step after others has no limit there.
    """
    sequence, heads = hidden_states.shape[1:3]
    dt = dt if dt_bias is None else dt + dt_bias
    dt = torch.nn.functional.softplus(dt) if dt_softplus else dt
    least, most = dt_limit
    if dt_limit != (0.0, float("inf")):
        bounded = dt.clamp(min=least, max=None if most == float("inf") else most)
        dt = bounded if initial_states is None else torch.where(torch.scalar_tensor(sequence) == 1, dt, bounded)
    query, key = (_chunked(part.float().repeat_interleave(heads // part.shape[2], dim=2)) for part in (C, B))
    value = _chunked(hidden_states.float() * dt[..., None])
    decay_NC = _chunked((A.float() * dt)[..., None])[..., 0].cumsum(-1)
    before = None if initial_states is None else initial_states.transpose(-1, -2)
    output, state = _scanned(query, key, value, decay_NC, _between(decay_NC), before)
    given = _joined(output, sequence)
    given = given if D is None else given + D[:, None] * hidden_states.float()
    return (given, state.transpose(-1, -2)) if return_final_states else given


def _between(decay_NC: torch.Tensor) -> torch.Tensor:
    """[..., C, C]: what is left at one position of what was written at another; nothing of later ones."""
    place = torch.arange(decay_NC.shape[-1])
    lower = place[:, None] >= place[None, :]
    return (decay_NC[..., :, None] - decay_NC[..., None, :]).masked_fill(~lower, float("-inf")).exp()


def _scanned(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay_NC: torch.Tensor,
    between: torch.Tensor,
    state: torch.Tensor | None,
    read_keys: torch.Tensor | None = None,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Chunk after chunk: outputs [B, H, C, V] and the last state [B, H, K, V].

    With `read_keys`, a chunk writes what its values differ by from what the state already holds there.
    """
    attention = query @ key.transpose(-1, -2) * between
    queries = query * decay_NC.exp()[..., None]
    written = (key * (decay_NC[..., -1:] - decay_NC).exp()[..., None]).transpose(-1, -2)
    whole = decay_NC[..., -1].exp()[..., None, None]
    state = torch.zeros_like(written[:, :, 0] @ value[:, :, 0]) if state is None else state.float()
    outputs = []
    for index in range(CHUNKS):
        new = value[:, :, index] if read_keys is None else value[:, :, index] - read_keys[:, :, index] @ state
        outputs.append(queries[:, :, index] @ state + attention[:, :, index] @ new)
        state = state * whole[:, :, index] + written[:, :, index] @ new
    return outputs, state


def _joined(outputs: list[torch.Tensor], sequence: int) -> torch.Tensor:
    """Chunks as [B, S, H, V]."""
    return torch.cat(outputs, 2).index_select(2, torch.arange(sequence)).transpose(1, 2)


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
    "mamba2_chunk_scan": mamba2,
    "torch_chunk_gated_delta_rule": gated_delta_rule,
    "torch_recurrent_gated_delta_rule": gated_delta_rule,
}
"""By the name that modeling files give it."""
