"""Attention in the two dialects, given to transformers through its own registries while a layer is traced.

portable  matmul, softmax, matmul and concatenated KV: opset 20, parsed by TensorRT 10.3
fused     ONNX Runtime's GroupQueryAttention over one KV buffer that is past and present at once; MultiHeadAttention
          for encoders; RotaryEmbedding as one node
Shapes: B batch, S new tokens, T total tokens, P past, N heads, K key-value heads, D head size.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from msao_compile.errors import StageError
from msao_compile.manifest.schema import Dialect

# transformers packs variable-length pictures into one attention call only for names that contain "flash".
IMPLEMENTATION = "flash_msao"
MASKED = -3.0e38  # close to the smallest float32: softmax of it is exactly zero, and no inf appears
OPSETS: dict[Dialect, int] = {"portable": 20, "fused": 23}

Mask = torch.Tensor


class LayerKV:
    """Stands where a layer expects transformers' Cache: holds this layer's past and catches its present."""

    def __init__(self, dialect: Dialect, past_key: torch.Tensor, past_value: torch.Tensor) -> None:
        self.dialect = dialect
        self.past = (past_key, past_value)
        self.present: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Concatenate (portable), or leave the new tokens alone for the fused node to store (fused)."""
        if self.dialect == "fused":
            return key, value
        self.present = (torch.cat([self.past[0], key], 2), torch.cat([self.past[1], value], 2))
        return self.present


def causal_mask(dialect: Dialect, attention_mask_BT: torch.Tensor, sequence: int) -> Mask:
    """What every decoder layer gets as its mask.

    portable: additive bias [B, 1, S, T]. fused: int32 [B + 1, 1, 1, 1], the last valid index of each row of the KV
    buffer and then T, which is what GroupQueryAttention asks for.
    """
    if dialect == "fused":
        last = attention_mask_BT.sum(-1) - 1
        length = torch.full_like(last[:1], attention_mask_BT.shape[1])
        return torch.cat([last, length]).to(torch.int32)[:, None, None, None]
    total = attention_mask_BT.shape[1]
    column = torch.arange(total)[None, :]
    row = torch.arange(sequence)[:, None] + (total - sequence)
    allowed = (column <= row)[None] & attention_mask_BT.bool()[:, None, :]
    return torch.where(allowed, 0.0, MASKED)[:, None]


@contextlib.contextmanager
def installed(dialect: Dialect, kv: Callable[[], LayerKV | None], module: nn.Module) -> Iterator[None]:
    """Route every attention call of `module` through this dialect for the duration of the block."""
    from transformers import AttentionInterface, AttentionMaskInterface

    def attention(
        layer: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: Mask | None = None,
        **rest: Any,
    ) -> tuple[torch.Tensor, None]:
        scale = float(rest.get("scaling") or query.shape[-1] ** -0.5)
        held = kv()
        if held is not None:
            return _decoder_attention(held, query, key, value, mask, scale), None
        bias = rest.get("cu_seq_lens_q", mask)
        return _encoder_attention(dialect, query, key, value, bias, scale), None

    def mask(*_: Any, mask_function: Any, attention_mask: torch.Tensor, q_length: int, **__: Any) -> Mask:
        if mask_function.__name__ != "causal_mask_function":
            raise StageError(
                f"the mask {mask_function.__qualname__} has no form in dialect {dialect} yet: "
                "only plain causal decoders are known"
            )
        return causal_mask(dialect, attention_mask, q_length)

    configs: dict[int, Any] = {id(part.config): part.config for part in module.modules() if hasattr(part, "config")}
    before = {key: config._attn_implementation for key, config in configs.items()}
    AttentionInterface.register(IMPLEMENTATION, attention)
    AttentionMaskInterface.register(IMPLEMENTATION, mask)
    for config in configs.values():
        config._attn_implementation = IMPLEMENTATION
    try:
        with _fused_rotary(module) if dialect == "fused" else contextlib.nullcontext():
            yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


def _decoder_attention(
    kv: LayerKV, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Mask | None, scale: float
) -> torch.Tensor:
    if kv.dialect == "portable":
        return _plain(query, key, value, mask, scale)
    if mask is None:
        raise StageError("a fused decoder layer was traced without its mask")
    batch, heads, sequence, size = query.shape
    packed = [part.transpose(1, 2).flatten(2) for part in (query, key, value)]
    past = kv.past[0]
    output, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        [*packed, *kv.past, mask[:-1].flatten(), mask[-1].flatten()[0]],
        {"num_heads": heads, "kv_num_heads": key.shape[1], "scale": scale},
        dtypes=[query.dtype, past.dtype, past.dtype],
        shapes=[packed[0].shape, past.shape, past.shape],
        version=1,
    )
    kv.present = (present_key, present_value)
    return output.view(batch, sequence, heads, size)


def _encoder_attention(
    dialect: Dialect, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: Mask | None, scale: float
) -> torch.Tensor:
    if dialect == "portable" or key.shape[1] != query.shape[1]:
        return _plain(query, key, value, bias, scale)
    batch, heads, sequence, size = query.shape
    packed = [part.transpose(1, 2).flatten(2) for part in (query, key, value)]
    output = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        [*packed, None, None, bias] if bias is not None else packed,
        {"num_heads": heads, "scale": scale},
        dtype=query.dtype,
        shape=packed[0].shape,
        version=1,
    )
    return output.view(batch, sequence, heads, size)


def _plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: Mask | None, scale: float
) -> torch.Tensor:
    _, heads, sequence, _ = query.shape
    groups = heads // key.shape[1]
    query = query.unflatten(1, (key.shape[1], groups)).flatten(2, 3)  # [B, K, groups x S, D]: no repeat of keys
    scores = torch.matmul(query, key.transpose(2, 3)) * scale
    scores = scores.unflatten(2, (groups, sequence))
    if bias is not None:
        scores = scores + bias[:, :, None]
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    output: torch.Tensor = torch.matmul(weights.flatten(2, 3), value)
    output = output.unflatten(2, (groups, sequence))
    return output.flatten(1, 2).transpose(1, 2)


@contextlib.contextmanager
def _fused_rotary(module: nn.Module) -> Iterator[None]:
    """Replace each modeling file's `apply_rotary_pos_emb` by the standard RotaryEmbedding node."""
    files = {type(part).__module__ for part in module.modules()}
    replaced: list[tuple[Any, Any]] = []
    for name in files:
        file = sys.modules[name]
        if name.startswith("transformers.models.") and hasattr(file, "apply_rotary_pos_emb"):
            replaced.append((file, file.apply_rotary_pos_emb))
            file.apply_rotary_pos_emb = _rotary  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for file, original in replaced:
            file.apply_rotary_pos_emb = original


def _rotary(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    if unsqueeze_dim != 1 or cos.shape[-1] != query.shape[-1]:
        raise StageError("rotary embedding over part of a head, or of another layout, has no fused form yet")
    half = cos.shape[-1] // 2
    tables = [cos[..., :half], sin[..., :half]]
    return _rotated(query, tables), _rotated(key, tables)


def _rotated(part: torch.Tensor, tables: list[torch.Tensor]) -> torch.Tensor:
    """Rotate [B, N, S, D] in the layout [B, S, N x D] that projection and attention have: no transpose stays."""
    heads, size = part.shape[1], part.shape[3]
    flat = part.transpose(1, 2).flatten(2)
    rotated = torch.onnx.ops.symbolic(
        "RotaryEmbedding", [flat, *tables], {"num_heads": heads}, dtype=flat.dtype, shape=flat.shape, version=23
    )
    output: torch.Tensor = rotated.unflatten(2, (heads, size))
    return output.transpose(1, 2)
