"""Attention and masks in the two dialects, given to transformers through its own registries while a model is traced.

portable  matmul, softmax, matmul and concatenated state: opset 20, parsed by TensorRT 10.3
fused     ONNX Runtime's GroupQueryAttention over one buffer that is past and present at once where a decoder is purely
          causal, MultiHeadAttention for encoders, RotaryEmbedding as one node; plain attention for the rest
Shapes: B batch, S new tokens, T total tokens, N heads, K key-value heads, D head size.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from msao_compile.errors import StageError
from msao_compile.graph.selections import Sites
from msao_compile.graph.state import States
from msao_compile.manifest.schema import Dialect
from msao_compile.symbolic import DATA

NAME, PACKED_NAME = "msao", "flash_msao"  # transformers packs pictures into one call only for names with "flash"
MASKED = -3.0e38  # close to the smallest float32: softmax of it is exactly zero, and no inf appears

CAUSAL = "causal_mask_function"
KIND = "msao_kind"  # what made a mask, written on the tensor itself

Mask = torch.Tensor


@dataclass
class Watch:
    """What attention calls were made while a model was looked at: which layers a fused node could serve.

    `scales` are those of each run's calls, in order; `halves` says whether every rotary table had two halves alike.
    """

    plain_layers: set[int] = field(default_factory=set)
    causal_layers: set[int] = field(default_factory=set)
    scales: list[list[tuple[str, float]]] = field(default_factory=list)
    halves: bool = True

    def note(self, layer: int, mask: Mask | None, simple: bool) -> None:
        """Remember a call over the state of `layer`."""
        kind = getattr(mask, KIND, "")
        (self.causal_layers if simple and kind == CAUSAL else self.plain_layers).add(layer)

    def refuse_scaling_by_length(self) -> None:
        """Seen in the runs, before a trace spends a minute on getting there.

        Raises:
            StageError: a call is scaled otherwise at another size.
        """
        for (layer, scale), (_, other) in zip(*self.scales, strict=False):
            if scale != other:
                raise _scaled_by_length(layer)

    @property
    def fusible(self) -> frozenset[int]:
        """All layers with state, or none: one mask serves them all."""
        return frozenset() if self.plain_layers else frozenset(self.causal_layers)


@dataclass
class Setting:
    """How attention is computed during one trace.

    `raw` are the layers that a fused node serves, `rotary` says whether one may rotate; `states` is the state being
    traced, set by whoever traces.
    """

    dialect: Dialect
    raw: frozenset[int] = frozenset()
    rotary: bool = True
    states: States | None = None
    watch: Watch | None = None
    sites: Sites = field(default_factory=Sites)

    def attention(
        self,
        layer: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Mask | None = None,
        **rest: Any,
    ) -> tuple[torch.Tensor, None]:
        """The interface of transformers' attention functions, whose names a model may call by; gives [B, S, N, D]."""
        scaling = rest.get("scaling")
        if isinstance(scaling, torch.SymFloat):
            raise _scaled_by_length(type(layer).__name__)
        if rest.get("block_indices") is not None:
            raise StageError(f"{type(layer).__name__} attends to blocks of keys of its choice, as no graph here can")
        scale = float(query.shape[-1] ** -0.5 if scaling is None else scaling)
        if self.watch is not None:
            self.watch.scales[-1].append((type(layer).__name__, scale))
        sinks = rest.get("s_aux") if rest.get("sinks") is None else rest.get("sinks")
        extra = [rest.get("softcap"), sinks, rest.get("position_bias")]
        chosen = rest.get("indices")
        simple = all(item is None for item in (*extra, chosen)) and key.shape[-1] == value.shape[-1]
        states = self.states
        index = states.fresh.get(id(key)) if states is not None else None
        if index is not None and self.watch is not None:
            self.watch.note(index, attention_mask, simple)
        if index is not None and states is not None and index in states.raw:
            return _grouped_query(states, index, (query, key, value), attention_mask, scale), None
        lengths = rest.get("cu_seq_lens_q")
        bias = _additive(attention_mask if lengths is None else _same_segment(lengths, query.shape[2]))
        if chosen is not None:
            only = _only(chosen, key.shape[2])
            bias = only if bias is None else torch.minimum(bias, only)  # a sum of both would be no finite number
        alike = str(query.shape[:2]) == str(key.shape[:2])  # one query for several rows is left to broadcasting
        if self.dialect == "fused" and index is None and simple and alike:
            return _multi_head(query, key, value, bias, scale), None
        return _plain(query, key, value, bias, scale, *extra), None

    def mask(
        self, *arguments: Any, mask_function: Callable[..., Any], attention_mask: Any, **sizes: Any
    ) -> Mask | None:
        """The interface of transformers' mask functions; additive and always spelled out."""
        from transformers.masking_utils import sdpa_mask

        kind = mask_function.__name__ if attention_mask is not None and attention_mask.ndim == 2 else ""
        if kind == CAUSAL:
            fused = self.states is not None and bool(self.states.raw)
            found: Mask | None = causal_mask(fused, attention_mask, sizes["q_length"])
        else:
            sizes |= {"mask_function": mask_function, "attention_mask": attention_mask}
            sizes |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
            found = _additive(sdpa_mask(*arguments, **sizes))
        if self.watch is not None and found is not None:
            setattr(found, KIND, kind)
        return found


def _scaled_by_length(layer: str) -> StageError:
    return StageError(f"{layer} scales attention by a length, which therefore cannot vary")


def causal_mask(fused: bool, attention_mask_BT: torch.Tensor, sequence: int) -> Mask:
    """Additive bias [B, 1, S, T]; fused: int32 [B + 1, 1, 1, 1], the last valid index of each row of the buffer and
    then T, which is what GroupQueryAttention asks for.
    """
    total = attention_mask_BT.shape[1]
    if fused:
        last = attention_mask_BT.sum(-1) - 1
        return torch.cat([last, torch.full_like(last[:1], total)]).to(torch.int32)[:, None, None, None]
    column = torch.arange(total)[None, :]
    row = torch.arange(sequence)[:, None] + (total - sequence)
    allowed = (column <= row)[None] & attention_mask_BT.bool()[:, None, :]
    return torch.where(allowed, 0.0, MASKED)[:, None]


def _additive(mask: Mask | None) -> Mask | None:
    return torch.where(mask, 0.0, MASKED) if mask is not None and mask.dtype == torch.bool else mask


def _only(chosen: torch.Tensor, total: int) -> Mask:
    """Bias [B, 1, S, total] under which a token sees the positions chosen for it, [B, S, as many as there are]."""
    hidden = torch.full((*chosen.shape[:2], total), MASKED)
    return hidden.scatter(-1, chosen.to(torch.int64), 0.0)[:, None]


def _same_segment(boundaries: torch.Tensor, length: int) -> Mask:
    """Bias [1, 1, length, length] under which a token sees its own segment: its frame, its window, its picture."""
    segment = (torch.arange(length)[:, None] >= boundaries[None]).sum(-1)  # counted from one: no length is cut to 1
    return torch.where(segment[:, None] == segment[None, :], 0.0, MASKED)[None, None]


@contextlib.contextmanager
def attending(setting: Setting, model: nn.Module) -> Iterator[None]:
    """Route every attention call of `model` through `setting` for the duration of the block."""
    from transformers import AttentionInterface, AttentionMaskInterface

    configs: dict[int, Any] = {}
    packing: set[int] = set()
    packers = {kind for kind in {type(part) for part in model.modules()} if _packs(kind)}
    for part in model.modules():
        for config in _configs(getattr(part, "config", None)):
            configs[id(config)] = config
        if type(part) in packers:
            packing.add(id(getattr(part, "config", None)))
    before = {key: config._attn_implementation for key, config in configs.items()}
    for name in (NAME, PACKED_NAME):
        AttentionInterface.register(name, setting.attention)
        AttentionMaskInterface.register(name, setting.mask)
    for key, config in configs.items():
        config._attn_implementation_internal = PACKED_NAME if key in packing else NAME
    try:
        with _fused_rotary(model, setting):
            yield
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]


def _configs(config: Any) -> Iterator[Any]:
    if config is not None and hasattr(config, "_attn_implementation"):
        yield config
        for name in getattr(config, "sub_configs", {}):
            yield from _configs(getattr(config, name, None))


def _packs(kind: type) -> bool:
    """Whether a module's own code gives several pictures to one attention call."""
    code = kind.__dict__.get("forward")
    return (
        kind.__module__.startswith("transformers.models")
        and code is not None
        and ("cu_seq_lens_q" in inspect.getsource(code))
    )


def _grouped_query(
    states: States, index: int, parts: tuple[torch.Tensor, ...], mask: Mask | None, scale: float
) -> torch.Tensor:
    """One node that appends to the buffer and attends over it."""
    query, key, _ = parts
    if mask is None or states.given is None:
        raise StageError("a fused decoder layer was traced without its mask or its state")
    batch, heads, sequence, size = query.shape
    packed = [part.transpose(1, 2).flatten(2) for part in parts]
    names = [f"past_key_values.{index}.{kind}" for kind in ("key", "value")]
    past = [states.given[name] for name in names]
    output, *present = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        [*packed, *past, mask[:-1].flatten(), mask[-1].flatten()[0]],
        {"num_heads": heads, "kv_num_heads": key.shape[1], "scale": scale},
        dtypes=[query.dtype, past[0].dtype, past[1].dtype],
        shapes=[packed[0].shape, past[0].shape, past[1].shape],
        version=1,
    )
    states.left |= dict(zip(names, present, strict=True))
    return output.view(batch, sequence, heads, size)


def _multi_head(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: Mask | None, scale: float
) -> torch.Tensor:
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
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: Mask | None,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
    position_bias: torch.Tensor | None,
) -> torch.Tensor:
    """[B, S, N, D]; `sinks`, [N] or one for each query [B, N, S, 1], take part of the weight of each row; `softcap`
    bounds the scores.
    """
    batch, heads, sequence, _ = query.shape
    groups = heads // key.shape[1]
    query = query.unflatten(1, (key.shape[1], groups)).flatten(2, 3)  # [B, K, groups x S, D]: no repeat of keys
    scores = torch.matmul(query, key.transpose(2, 3)) * scale
    scores = scores.unflatten(2, (groups, sequence))
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    for added in (bias, position_bias):
        if added is not None:
            grouped = added.shape[1] != 1
            scores = scores + (added.unflatten(1, (key.shape[1], groups)) if grouped else added[:, :, None])
    if sinks is None:
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    else:
        if sinks.ndim == 1:
            sinks = sinks.reshape(1, heads, 1, 1).expand(batch, -1, sequence, 1)
        column = sinks.unflatten(1, (key.shape[1], groups))
        weights = torch.softmax(torch.cat([scores, column], -1), dim=-1)[..., :-1]
    output: torch.Tensor = torch.matmul(weights.flatten(2, 3), value).unflatten(2, (groups, sequence))
    return output.flatten(1, 2).transpose(1, 2)


@contextlib.contextmanager
def _fused_rotary(model: nn.Module, setting: Setting) -> Iterator[None]:
    """Replace each modeling file's `apply_rotary_pos_emb` by one that makes RotaryEmbedding nodes where they fit, or
    that looks at the tables where a watch is set.
    """
    replaced: list[tuple[Any, Any]] = []
    wanted = setting.watch is not None or (setting.dialect == "fused" and setting.rotary)
    for name in {type(part).__module__ for part in model.modules()} if wanted else ():
        file = sys.modules[name]
        if name.startswith("transformers.models.") and _is_half_rotation(file):
            replaced.append((file, file.apply_rotary_pos_emb))
            file.apply_rotary_pos_emb = _rotary_or(file.apply_rotary_pos_emb, setting.watch)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for file, original in replaced:
            file.apply_rotary_pos_emb = original


def _is_half_rotation(file: Any) -> bool:
    """Whether a modeling file rotates the two halves of a head against each other, as the standard node does.

    Seen by trying: other layouts (interleaved, partial, sections of their own) give other numbers.
    """
    function = getattr(file, "apply_rotary_pos_emb", None)
    if function is None or list(inspect.signature(function).parameters)[:4] != ["q", "k", "cos", "sin"]:
        return False
    chance = torch.Generator().manual_seed(0)
    query, key = (torch.rand(1, 2, 3, 8, generator=chance) for _ in range(2))
    cos, sin = (torch.rand(1, 3, 4, generator=chance).repeat(1, 1, 2) for _ in range(2))
    try:
        found = function(query, key, cos, sin)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    rotated = torch.cat([-query[..., 4:], query[..., :4]], -1)
    return bool(torch.allclose(found[0], query * cos[:, None] + rotated * sin[:, None]))


def _rotary_or(original: Callable[..., Any], watch: Watch | None) -> Callable[..., Any]:
    def rotary(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *rest: Any, **named: Any) -> Any:
        whole = cos.ndim == 3 and cos.shape[-1] == q.shape[-1] and q.ndim == k.ndim == 4
        if rest or named.get("unsqueeze_dim", 1) != 1 or not whole:
            return original(q, k, cos, sin, *rest, **named)
        half = cos.shape[-1] // 2
        if watch is not None:
            real = [getattr(table, DATA, table) for table in (cos, sin)]  # of a layer that is not computed
            watch.halves &= all(torch.equal(table[..., :half], table[..., half:]) for table in real)
            return original(q, k, cos, sin)
        tables = [cos[..., :half], sin[..., :half]]
        if str(cos.shape[0]) == "1":  # one table for all rows; the node wants one for each
            tables = [table.expand(q.shape[0], -1, -1) for table in tables]
        return _rotated(q, tables), _rotated(k, tables)

    return rotary


def _rotated(part: torch.Tensor, tables: list[torch.Tensor]) -> torch.Tensor:
    """Rotate [B, N, S, D] in the layout [B, S, N x D] that projection and attention have: no transpose stays."""
    heads, size = part.shape[1], part.shape[3]
    flat = part.transpose(1, 2).flatten(2)
    rotated = torch.onnx.ops.symbolic(
        "RotaryEmbedding", [flat, *tables], {"num_heads": heads}, dtype=flat.dtype, shape=flat.shape, version=23
    )
    output: torch.Tensor = rotated.unflatten(2, (heads, size))
    return output.transpose(1, 2)
