"""A decoder's state while it is looked at or traced: what transformers takes for its cache.

Looked at (`given` None), it starts empty and writes down every state tensor that the layers ask for. Traced, it gives
the layers graph inputs and keeps what they leave, whatever it is: keys and values, a sliding window of them, the tail
of a convolution, the state of a recurrence. Windows are not cut off here: the mask hides what lies outside.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, EncoderDecoderCache

from msao_compile.errors import UnsupportedFamily
from msao_compile.manifest.schema import StateUpdate
from msao_compile.symbolic import zeros


@dataclass(frozen=True)
class StateTensor:
    """One state tensor of one layer: its shape for one example, and the axis along which it grows, if any."""

    layer: int
    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    axis: int | None

    @property
    def name(self) -> str:
        """`past_key_values.{layer}.{kind}`, for convolutions and recurrences too: one list of names for all state."""
        return f"past_key_values.{self.layer}.{self.kind}"

    @property
    def update(self) -> StateUpdate:
        """How the tensor that comes out relates to the one that went in."""
        return "replace" if self.axis is None else "concat"

    def example(self, batch: int, past: int) -> torch.Tensor:
        """Zeros for `batch` sequences of which `past` positions are known."""
        shape = list(self.shape)
        shape[0] = batch
        if self.axis is not None:
            shape[self.axis] = past
        return zeros(shape, self.dtype)


class _Layer(CacheLayerMixin):
    """What code that reaches into `cache.layers[i]` finds."""

    is_sliding = False

    def __init__(self, states: States, index: int) -> None:
        self.states, self.index = states, index
        self.keys = self.values = torch.empty(0)
        self.is_initialized = True
        self.record_past = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to make: state is given from outside."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        """Past and new keys and values, [batch, heads, positions, head size]."""
        self.keys, self.values = self.states.update(key_states, value_states, self.index)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Positions that keys have, and the first one's index."""
        return self.states.past + query_length, 0

    def get_seq_length(self) -> int:
        """Positions known before this call."""
        return self.states.past

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def update_index(self, *_: Any) -> torch.Tensor:
        """Of attention that sees chosen blocks of keys alone.

        Raises:
            UnsupportedFamily: always; how many blocks there are to choose from changes with every token.
        """
        raise UnsupportedFamily(
            f"layer {self.index} attends to blocks of keys that it chooses by an index of its own, and into how many "
            "blocks the keys fall depends on a length in a way that one graph for every length does not have"
        )


class States(Cache):
    """Stands where a model expects its cache.

    Args:
        layers: how many layers may ask.
        past: positions known already, a number or a symbol of the trace.
        sequence: positions of this call: keys of another length belong to cross-attention, are no state and pass.
        given: state tensors by `StateTensor.name`; None to find out which there are.
        raw: layers whose new keys and values are handed on as they are, for a fused node that stores them itself.
    """

    is_compileable = False
    is_initialized = True

    def __init__(
        self,
        layers: int,
        past: int,
        sequence: int,
        given: Mapping[str, torch.Tensor] | None = None,
        raw: frozenset[int] = frozenset(),
    ) -> None:
        self.past, self.sequence, self.given, self.raw = past, sequence, given, raw
        self.found: dict[str, StateTensor] = {}
        self.left: dict[str, torch.Tensor] = {}
        self.fresh: dict[int, int] = {}  # id of a raw key -> its layer
        self.asked: list[int] = []
        self.own = [_Layer(self, index) for index in range(layers)]
        self.layers = list(self.own)  # under the name that models reach for
        self.layer_class_to_replicate = None
        self.offloading = False

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Past and new keys and values; those of cross-attention as they are."""
        self.asked.append(layer_idx)
        layer = self.own[layer_idx]
        if self._is_cross(key_states, layer_idx):
            layer.keys, layer.values = key_states, value_states
            return key_states, value_states
        if layer_idx in self.raw:
            self.fresh[id(key_states)] = layer_idx
            return key_states, value_states
        key, value = self._grown(layer_idx, "key", key_states, -2), self._grown(layer_idx, "value", value_states, -2)
        self.fresh[id(key)] = layer_idx
        layer.keys, layer.values = key, value
        return key, value

    def _is_cross(self, key: torch.Tensor, layer: int) -> bool:
        """Whether keys are an encoder's: what a layer that has left its own already gives next is."""
        name = f"past_key_values.{layer}.key"
        if name in self.left:
            return True
        if self.given is not None:
            return name not in self.given
        return key.shape[-2] != self.sequence

    def _grown(self, layer: int, kind: str, new: torch.Tensor, axis: int) -> torch.Tensor:
        tensor = self._note(layer, kind, new.shape, new.dtype, axis % new.ndim)
        grown = new if self.given is None else torch.cat([self.given[tensor.name], new], axis)
        self.left[tensor.name] = grown
        return grown

    def _note(self, layer: int, kind: str, shape: Any, dtype: torch.dtype, axis: int | None) -> StateTensor:
        tensor = StateTensor(layer, kind, tuple(shape), dtype, axis)
        self.found[tensor.name] = tensor
        return tensor

    def update_indexer(self, indexer_key_states: torch.Tensor, layer_idx: int) -> torch.Tensor:
        """Past and new keys of a sparse attention's index, [batch, positions, head size]."""
        return self._grown(layer_idx, "indexer", indexer_key_states, 1)

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        """The tail of a convolution's inputs; None while it is not known that there is one."""
        return None if self.given is None else self.given[f"past_key_values.{layer_idx}.conv{state_idx}"]

    def update_conv_state(
        self,
        conv_states: torch.Tensor,
        layer_idx: int,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Tail and new inputs, [batch, channels, positions]; the last `conv_kernel_size` of them stay."""
        kept = conv_kernel_size or conv_states.shape[-1]
        shape = (*conv_states.shape[:-1], kept)
        self.asked.append(layer_idx)
        tensor = self._note(layer_idx, f"conv{state_idx}", shape, conv_states.dtype, None)
        tail = conv_states.new_zeros(shape) if self.given is None else self.given[tensor.name]
        full = torch.cat([tail, conv_states], -1)
        self.left[tensor.name] = full[..., -kept:]
        return full

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        """The state of a recurrence; None while it is not known that there is one."""
        return None if self.given is None else self.given[f"past_key_values.{layer_idx}.recurrent{state_idx}"]

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **_: Any
    ) -> torch.Tensor:
        """Keep the state after the last position."""
        self.asked.append(layer_idx)
        shape = recurrent_states.shape
        tensor = self._note(layer_idx, f"recurrent{state_idx}", shape, recurrent_states.dtype, None)
        self.left[tensor.name] = recurrent_states
        return recurrent_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions known before this call."""
        return self.past

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Index of the first new position."""
        return self.past

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Positions that keys have, and the first one's index."""
        return self.past + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """No limit."""
        return -1

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """Always, when traced: a state of zeros is an empty one."""
        return self.given is not None

    def is_recording_past(self, layer_idx: int) -> bool:
        """Always: it makes models take the way that serves one token and many."""
        return True

    @property
    def is_sliding(self) -> list[bool]:
        """No layer forgets by itself."""
        return [False] * len(self.layers)

    is_linear = is_dummy = is_sliding


class _Passing(Cache):
    """The cache of cross-attention: its keys and values are computed from the encoder's output and pass as they are."""

    def __init__(self, layers: int) -> None:
        self.layers = [_Layer(States(0, 0, 0), index) for index in range(layers)]

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """As they are."""
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Nothing is remembered."""
        return 0


class EncoderDecoderStates(EncoderDecoderCache):
    """States for decoders that also attend to an encoder, whose keys and values leave it with the encoder's graph."""

    def __init__(self, states: States) -> None:
        self.self_attention_cache: Any = states
        self.cross_attention_cache: Any = _Passing(len(states.layers))
        self.is_updated = defaultdict(bool)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.self_attention_cache, name)

    def update(self, *arguments: Any, **named: Any) -> Any:
        """Of self-attention."""
        return self.self_attention_cache.update(*arguments, **named)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions known before this call."""
        past: int = self.self_attention_cache.past
        return past

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Index of the first new position."""
        past: int = self.self_attention_cache.past
        return past

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Positions that keys have, and the first one's index."""
        found: tuple[int, int] = self.self_attention_cache.get_mask_sizes(query_length, layer_idx)
        return found
