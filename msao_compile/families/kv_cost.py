"""What a decoder keeps for each token it has seen, by its config: in layers that keep all, a window or a state."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

STATE_LAYERS = ("linear_attention", "conv", "mamba", "recurrent", "moe_mamba")
WINDOWED = ("sliding_attention", "chunked_attention")
WINDOWS = ("sliding_window", "attention_chunk_size")


def trained_positions(config: PretrainedConfig) -> int | None:
    """How many positions the decoder was made for, None where its config does not say."""
    text = config.get_text_config(decoder=True)
    said = (getattr(text, name, None) for name in ("max_position_embeddings", "max_target_positions"))
    return next((count for count in said if isinstance(count, int)), None)


@dataclass(frozen=True)
class KVCost:
    """Elements that the cache of one sequence holds; bytes are these times the size of one.

    Of `window` layers no more than `window` tokens are kept; `state_elements` are there from the first token on.
    `cross_elements` are the keys and values of the encoder's positions, where the config tells how many those are.
    """

    layers: int
    full_layers: int
    window_layers: int
    state_layers: int
    num_key_value_heads: int
    head_dim: int
    window: int | None
    full_elements_per_token: int
    window_elements_per_token: int
    state_elements: int
    cross_elements: int

    def bytes_at(self, tokens: int, item_bytes: int) -> int:
        """Bytes of one sequence's cache that holds so many tokens."""
        windowed = tokens if self.window is None else min(tokens, self.window)
        elements = self.full_elements_per_token * tokens + self.window_elements_per_token * windowed
        return (elements + self.state_elements + self.cross_elements) * item_bytes

    def plain(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def kv_cost(config: PretrainedConfig) -> KVCost | None:
    """Of a whole model's config; None where it generates no tokens.

    Names are read through optimum's `NormalizedTextConfig`, so that every family's own are understood.
    """
    from optimum.utils import NormalizedTextConfig

    # Of a config that is encoder and decoder at once `get_text_config` makes another, with defaults of its own.
    text = config if hasattr(config, "decoder_layers") else config.get_text_config(decoder=True)
    try:
        layers = int(getattr(text, "decoder_layers", None) or NormalizedTextConfig(text).num_layers)
        heads = [_heads(one) for one in _by_layer(text, layers)]
    except (AttributeError, TypeError):
        return None
    kept = [(kind, _elements(text, kind, *heads[index])) for index, kind in _kinds(text, layers).items()]
    full = [elements for kind, elements in kept if kind not in (*WINDOWED, *STATE_LAYERS)]
    windowed = [elements for kind, elements in kept if kind in WINDOWED]
    states = [elements for kind, elements in kept if kind in STATE_LAYERS]
    window = next((value for name in WINDOWS if (value := getattr(text, name, None))), None)
    kv_heads, head_dim = heads[0]
    return KVCost(
        layers=layers,
        full_layers=len(full),
        window_layers=len(windowed),
        state_layers=len(states),
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        window=int(window) if windowed and window else None,
        full_elements_per_token=sum(full),
        window_elements_per_token=sum(windowed),
        state_elements=sum(states),
        cross_elements=_cross_elements(config, text, layers, kv_heads * head_dim),
    )


def _by_layer(text: PretrainedConfig, layers: int) -> list[PretrainedConfig]:
    """The config as each layer has it: in some families layers differ in their heads."""
    return list(text.per_layer_config) if getattr(text, "is_heterogeneous", False) else [text] * layers


def _heads(text: PretrainedConfig) -> tuple[int, int]:
    """Key-value heads, and the size of one."""
    from optimum.utils import NormalizedTextConfig

    normal = NormalizedTextConfig(text)
    of_decoder = getattr(text, "decoder_attention_heads", None)  # its other names may mean the encoder's heads
    heads = int(of_decoder or normal.num_attention_heads)
    head_dim = int(getattr(text, "head_dim", None) or normal.hidden_size // heads)
    return int(of_decoder or getattr(text, "num_key_value_heads", None) or heads), head_dim


def _kinds(text: PretrainedConfig, layers: int) -> dict[int, str]:
    """The kind of each layer that keeps something of its own; the last ones may read what an earlier one keeps."""
    told = getattr(text, "layer_types", None)
    kinds = [str(kind) for kind in told] if isinstance(told, list | tuple) and len(told) == layers else []
    kinds = kinds or ["full_attention"] * layers
    shared = getattr(text, "num_kv_shared_layers", None) or 0
    crossing = set(getattr(text, "cross_attention_layers", None) or ())  # they keep the picture, not the text
    return {index: kind for index, kind in enumerate(kinds[: layers - shared]) if index not in crossing}


def _elements(text: PretrainedConfig, kind: str, kv_heads: int, head_dim: int) -> int:
    """Of one layer: for each token, or in all where the layer keeps a state."""
    if kind not in STATE_LAYERS:
        return 2 * kv_heads * head_dim
    if kind == "conv":
        return int(text.hidden_size) * int(getattr(text, "conv_L_cache", 0))
    values = {name: int(getattr(text, f"linear_{name}", None) or 0) for name in
              ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim", "conv_kernel_dim")}  # fmt: skip
    keys_width = values["num_key_heads"] * values["key_head_dim"]
    values_width = values["num_value_heads"] * values["value_head_dim"]
    return values["key_head_dim"] * values_width + (2 * keys_width + values_width) * values["conv_kernel_dim"]


def _cross_elements(config: PretrainedConfig, text: PretrainedConfig, layers: int, width: int) -> int:
    positions = getattr(text, "max_source_positions", None) if getattr(config, "is_encoder_decoder", False) else None
    return 2 * layers * width * int(positions or 0)
