"""A decoder's state, whatever its graph does with it: in place, grown or replaced; and put back where it can be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from msao_compile.errors import CapacityExceeded, StageError
from msao_compile.manifest.schema import RuntimeSettings, StateSpec
from msao_compile.runtime.backends.base import EngineFile
from msao_compile.runtime.backends.ort import OrtDecoder

WIDTH, CAPACITY = 4, 6
SETTINGS = RuntimeSettings(threads=1, arena=False, warm_up=0)
PAST = f"float[batch_size,past_sequence_length,{WIDTH}]"
KINDS = {
    "in_place": (PAST, ("batch_size", "past_sequence_length", WIDTH)),
    "concat": (PAST, ("batch_size", "past_sequence_length", WIDTH)),
    "replace": (f"float[batch_size,{WIDTH}]", ("batch_size", WIDTH)),
}
# Each gives, of everything that was ever appended, the sum.
BODIES = {
    "in_place": """
  rows{i} = Transpose<perm = [1, 0]>(position_ids)
  held{i} = Squeeze(past{i}, zero)
  fresh{i} = Squeeze(inputs_embeds, zero)
  written{i} = ScatterND(held{i}, rows{i}, fresh{i})
  present{i} = Unsqueeze(written{i}, zero)
  total{i} = Shape<start = 1>(attention_mask)
  known{i} = Slice(present{i}, zero, total{i}, one)
  sum{i} = ReduceSum<keepdims = 1>(known{i}, one)""",
    "concat": """
  present{i} = Concat<axis = 1>(past{i}, inputs_embeds)
  sum{i} = ReduceSum<keepdims = 1>(present{i}, one)""",
    "replace": """
  fresh{i} = ReduceSum<keepdims = 0>(inputs_embeds, one)
  present{i} = Add(past{i}, fresh{i})
  sum{i} = Unsqueeze(present{i}, one)""",
}


def decoder(folder: Path, *kinds: str) -> OrtDecoder:
    """A decoder with these states in this order; its logits are the sums that each state makes, added up."""
    taken = [f"{KINDS[kind][0]} past{index}" for index, kind in enumerate(kinds)]
    given = [f"{KINDS[kind][0].replace('past_', 'more_')} present{index}" for index, kind in enumerate(kinds)]
    body = "".join(BODIES[kind].format(i=index) for index, kind in enumerate(kinds))
    sums = ", ".join(f"sum{index}" for index in range(len(kinds)))
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
g ({
        ", ".join(
            [
                f"float[1,s,{WIDTH}] inputs_embeds",
                "int64[1,t] attention_mask",
                "int64[1,s] position_ids",
                "int64[k] logits_positions",
                *taken,
            ]
        )
    }) => ({", ".join([f"float[1,k,{WIDTH}] logits", *given])})
<int64[1] zero = {{0}}, int64[1] one = {{1}}, float nil = {{0}}> {{{body}
  all = Sum({sums})
  asked = Gather<axis = 1>(inputs_embeds, logits_positions)
  room = Mul(asked, nil)
  logits = Add(room, all)
}}"""
    ir.save(ir.from_onnx_text(text), folder / "decoder.onnx")
    states = tuple(
        StateSpec(name=f"past{index}", output=f"present{index}", dtype="float32", shape=KINDS[kind][1], update=kind)  # type: ignore[arg-type]
        for index, kind in enumerate(kinds)
    )
    return OrtDecoder(EngineFile(folder / "decoder.onnx", "portable", SETTINGS, states))


def step(engine: OrtDecoder, cache: object, *numbers: float) -> float:
    """Append tokens; what the decoder makes of all it has seen."""
    start, count = cache.length, len(numbers)  # type: ignore[attr-defined]
    feed = {
        "inputs_embeds": np.repeat(np.asarray(numbers, np.float32)[None, :, None], WIDTH, 2),
        "attention_mask": np.ones((1, start + count), np.int64),
        "position_ids": np.arange(start, start + count)[None],
        "logits_positions": np.array([count - 1]),
    }
    logits = engine.step({name: feed[name] for name in feed if name in engine.inputs}, cache)  # type: ignore[arg-type]
    assert logits.shape == (1, 1, WIDTH)
    return float(logits[0, 0, 0])


@pytest.mark.parametrize(
    "kinds",
    [("in_place",), ("concat",), ("replace",), ("concat", "in_place", "replace"), ("replace", "concat", "in_place"),
     ("in_place", "concat", "in_place", "concat")],
)  # fmt: skip
def test_each_kind_of_state_knows_everything_that_was_appended(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    engine = decoder(tmp_path, *kinds)
    cache = engine.new_cache(CAPACITY)
    assert step(engine, cache, 1, 2, 4) == 7 * len(kinds)
    assert step(engine, cache, 8) == 15 * len(kinds)
    assert step(engine, cache, 16, 32) == 63 * len(kinds)
    assert cache.length == 6


@pytest.mark.parametrize("kinds", [("in_place",), ("concat",), ("concat", "in_place")])
def test_what_was_rolled_back_is_forgotten(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    engine = decoder(tmp_path, *kinds)
    cache = engine.new_cache(CAPACITY)
    step(engine, cache, 1, 2, 4, 8)
    cache.rollback(2)
    assert step(engine, cache, 64) == (1 + 2 + 64) * len(kinds)
    cache.rollback(0)
    assert step(engine, cache, 5) == 5 * len(kinds)


def test_a_state_that_is_replaced_cannot_be_rolled_back_and_is_named(tmp_path: Path) -> None:
    engine = decoder(tmp_path, "in_place", "replace")
    cache = engine.new_cache(CAPACITY)
    step(engine, cache, 1, 2, 4)
    with pytest.raises(StageError, match="state past1 cannot be rolled back from 3 positions to 2"):
        cache.rollback(2)
    cache.rollback(3)  # nothing is forgotten
    assert step(engine, cache, 8) == 15 * 2


@pytest.mark.parametrize("length", [-1, 3])
def test_a_rollback_goes_backwards_only(tmp_path: Path, length: int) -> None:
    engine = decoder(tmp_path, "replace")
    cache = engine.new_cache(CAPACITY)
    step(engine, cache, 1, 2)
    with pytest.raises(ValueError, match=f"a KV cache of 2 positions cannot roll back to {length}"):
        cache.rollback(length)


@pytest.mark.parametrize("kind", KINDS)
def test_conversations_of_one_decoder_know_nothing_of_each_other(tmp_path: Path, kind: str) -> None:
    engine = decoder(tmp_path, kind)
    one, other = engine.new_cache(CAPACITY), engine.new_cache(CAPACITY)
    step(engine, one, 1, 2)
    step(engine, other, 100)
    assert (step(engine, one, 4), step(engine, other, 200)) == (7, 300)


@pytest.mark.parametrize("kind", KINDS)
def test_more_than_the_capacity_is_refused_and_changes_nothing(tmp_path: Path, kind: str) -> None:
    engine = decoder(tmp_path, kind)
    cache = engine.new_cache(CAPACITY)
    step(engine, cache, 1, 2, 4, 8)
    with pytest.raises(CapacityExceeded, match="3 more positions do not fit a KV cache that holds 4 of 6"):
        step(engine, cache, 1, 1, 1)
    assert (cache.length, step(engine, cache, 16)) == (4, 31)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_fails_leaves_the_state_as_it_was(tmp_path: Path, kind: str) -> None:
    engine = decoder(tmp_path, kind)
    cache = engine.new_cache(CAPACITY)
    step(engine, cache, 1, 2)
    feed = {"inputs_embeds": np.ones((1, 1, WIDTH), np.float32), "attention_mask": np.ones((1, 3), np.int64),
            "position_ids": np.array([[2]]), "logits_positions": np.array([7])}  # fmt: skip
    with pytest.raises(StageError, match=r"decoder\.onnx: "):
        engine.step({name: feed[name] for name in feed if name in engine.inputs}, cache)
    assert (cache.length, step(engine, cache, 4)) == (2, 7)
