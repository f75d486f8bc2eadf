"""The floor of a decode step: the bytes that it has to read over the bandwidth that was measured here."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from tests.bench.floor import layer_weights
from tests.bench.work import PROMPT_TOKENS

ITEM_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


def weight_bytes(text: Mapping[str, Any], precision: str) -> int:
    """Bytes of the weights that one step reads, whatever the batch: the decoder's layers and its head."""
    numbers = text["num_hidden_layers"] * layer_weights(dict(text)) + text["hidden_size"] * text["vocab_size"]
    return int(numbers) * ITEM_BYTES[precision]


def state_bytes(text: Mapping[str, Any], precision: str, positions: float, batch: int) -> float:
    """Bytes of the keys and values that one step reads where `positions` are known."""
    rows = 2 * text["num_hidden_layers"] * text["num_key_value_heads"] * text["head_dim"]
    return float(rows * positions * batch * ITEM_BYTES[precision])


def step_bytes(text: Mapping[str, Any], precision: str, new_tokens: int, batch: int) -> float:
    """Bytes that an average step of an answer reads."""
    positions = PROMPT_TOKENS + new_tokens / 2
    return weight_bytes(text, precision) + state_bytes(text, precision, positions, batch)


def floor_ms(read_bytes: float, bytes_per_s: float) -> float:
    """Milliseconds that reading takes."""
    return read_bytes / bytes_per_s * 1e3


def fraction(step_ms: float, lowest_ms: float) -> float:
    """How much of the measured bandwidth a step uses: 1 is the floor itself."""
    return lowest_ms / step_ms


def with_floor(
    row: Mapping[str, Any], text: Mapping[str, Any], precision: str, new_tokens: int, bytes_per_s: float
) -> dict[str, Any]:
    """A row of timings with its floor and how near it comes; as it is where it has no timings."""
    if not row.get("tpot_ms"):
        return dict(row)
    read = step_bytes(text, precision, new_tokens, int(row["batch"]))
    lowest = floor_ms(read, bytes_per_s)
    near = fraction(median(row["tpot_ms"]), lowest)
    return {**row, "step_bytes": read, "floor_ms": lowest, "fraction_of_floor": near}
