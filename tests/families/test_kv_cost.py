"""What a decoder keeps for each token, by the kinds of its layers."""

from __future__ import annotations

from typing import Any

import transformers

from msao_compile.families.kv_cost import KVCost, kv_cost

TEXT: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
                        "head_dim": 16, "vocab_size": 100}  # fmt: skip


def of(config: Any) -> KVCost:
    found = kv_cost(config)
    assert found is not None
    return found


def test_every_layer_keeps_keys_and_values_of_its_own_heads() -> None:
    found = of(transformers.LlavaConfig(text_config={"model_type": "llama", **TEXT}))
    assert (found.layers, found.full_layers, found.num_key_value_heads, found.head_dim) == (4, 4, 2, 16)
    assert found.full_elements_per_token == 4 * 2 * 2 * 16
    assert found.bytes_at(100, item_bytes=2) == 4 * 2 * 2 * 16 * 100 * 2


def test_a_window_bounds_what_its_layers_keep() -> None:
    kinds = ["sliding_attention", "full_attention"] * 2
    found = of(transformers.Gemma3Config(text_config={**TEXT, "sliding_window": 8, "layer_types": kinds}))
    assert (found.full_layers, found.window_layers, found.window) == (2, 2, 8)
    per_layer = 2 * 2 * 16
    assert found.bytes_at(100, item_bytes=1) == 2 * per_layer * 100 + 2 * per_layer * 8
    assert found.bytes_at(5, item_bytes=1) == 4 * per_layer * 5


def test_a_state_is_as_large_after_one_token_as_after_many() -> None:
    text = {**TEXT, "layer_types": ["linear_attention"] * 3 + ["full_attention"], "linear_num_key_heads": 2,
            "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
            "linear_conv_kernel_dim": 4}  # fmt: skip
    found = of(transformers.Qwen3_5Config(text_config=text))
    state = 3 * (4 * 8 * 8 + (2 * 2 * 8 + 4 * 8) * 4)
    assert (found.state_layers, found.state_elements) == (3, state)
    assert found.bytes_at(1, 1) == state + 2 * 2 * 16


def test_layers_that_look_at_the_picture_keep_no_text() -> None:
    text = {**TEXT, "cross_attention_layers": [1]}
    assert of(transformers.MllamaConfig(text_config=text)).full_layers == 3


def test_a_layer_may_have_heads_of_its_own() -> None:
    text = {**TEXT, "layer_types": ["sliding_attention"] * 3 + ["full_attention"], "sliding_window": 8,
            "global_head_dim": 32, "num_kv_shared_layers": 0}  # fmt: skip
    found = of(transformers.Gemma4Config(text_config=text))
    assert found.window_elements_per_token == 3 * 2 * 2 * 16
    assert found.full_elements_per_token == 2 * 2 * 32


def test_an_encoder_decoder_keeps_the_encoders_positions_too() -> None:
    config = transformers.WhisperConfig(
        d_model=32, decoder_layers=3, encoder_layers=2, decoder_attention_heads=2, max_source_positions=50
    )
    found = of(config)
    assert (found.layers, found.head_dim) == (3, 16)
    assert found.cross_elements == 2 * 3 * 32 * 50


def test_what_has_no_heads_has_no_cost() -> None:
    assert kv_cost(transformers.ResNetConfig()) is None
