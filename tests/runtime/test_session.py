"""A loaded model in both dialects: rolling back, refusing, batches with padding, one session for what is shared."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import checkpoints
import numpy as np
import pytest
import torch

from msao_compile.errors import CapacityExceeded, DeploymentError, InputError, PictureError, PromptError, StageError
from msao_compile.manifest.schema import Graph
from msao_compile.runtime import load
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.engines import Engines
from msao_compile.runtime.forward import rows
from msao_compile.runtime.loader import read_manifest
from msao_compile.runtime.session import ModelSession, Request

IDS = np.array([[9, 8, 7]])
OVER_TOKENS = ("input_ids", "attention_mask", "mm_token_type_ids")
PROMPT, STEPS = np.arange(20, 31, dtype=np.int64), np.arange(40, 48, dtype=np.int64)


@pytest.fixture(scope="module", params=["fused", "portable"])
def session(request: pytest.FixtureRequest, deployment: Path) -> ModelSession:
    manifest = read_manifest(deployment)
    return Engines(deployment, manifest, verify=True, dialect=request.param).session(manifest.models[0])


def extend(session: ModelSession, talk: object, ids: np.ndarray) -> np.ndarray:
    return np.concatenate([session.extend(ids[[index]], talk, Clock()) for index in range(len(ids))])


def test_a_rollback_forgets_and_the_same_tokens_give_the_same_bits_again(session: ModelSession) -> None:
    _, talk = session.prefill(Request(PROMPT, {}), {}, Clock())
    first = extend(session, talk, STEPS)
    talk.cache.rollback(len(PROMPT) + 2)
    other = extend(session, talk, STEPS[::-1])  # another continuation must leave no trace
    talk.cache.rollback(len(PROMPT) + 2)
    again = extend(session, talk, STEPS[2:])
    assert again.tobytes() == first[2:].tobytes()
    assert not np.array_equal(other[: len(again)], again)


def test_a_rollback_to_the_start_is_a_new_conversation(session: ModelSession) -> None:
    fresh, _ = session.prefill(Request(PROMPT, {}), {}, Clock(), every=True)
    _, talk = session.prefill(Request(STEPS, {}), {}, Clock())
    talk.cache.rollback(0)
    np.testing.assert_allclose(extend(session, talk, PROMPT), fresh, atol=1e-5)


@pytest.mark.parametrize("length", [-1, 12, 999])
def test_a_rollback_goes_backwards_only(session: ModelSession, length: int) -> None:
    _, talk = session.prefill(Request(PROMPT, {}), {}, Clock())
    with pytest.raises(ValueError, match=f"a KV cache of 11 positions cannot roll back to {length}"):
        talk.cache.rollback(length)
    assert talk.cache.length == len(PROMPT)


def test_several_tokens_at_once_equal_one_after_the_other(session: ModelSession) -> None:
    _, one = session.prefill(Request(PROMPT, {}), {}, Clock())
    _, other = session.prefill(Request(PROMPT, {}), {}, Clock())
    np.testing.assert_allclose(session.extend(STEPS, one, Clock()), extend(session, other, STEPS), atol=1e-5)


def test_two_conversations_do_not_share_a_cache(session: ModelSession) -> None:
    _, first = session.prefill(Request(PROMPT, {}), {}, Clock())
    expected = session.extend(STEPS[:1], first, Clock())
    _, one = session.prefill(Request(PROMPT, {}), {}, Clock())
    _, two = session.prefill(Request(STEPS, {}), {}, Clock())
    session.extend(STEPS[:3], two, Clock())
    assert session.extend(STEPS[:1], one, Clock()).tobytes() == expected.tobytes()


@pytest.mark.parametrize("family", ["idefics3", "llava", "qwen2_5_vl"])
def test_tokens_after_a_picture_stand_where_one_pass_puts_them(built: Callable[[str], Path], family: str) -> None:
    runtime, inputs = load(built(family)), checkpoints.example(family)
    whole = runtime.forward(inputs)["logits"][0]
    session, ids = runtime.session("edge"), inputs["input_ids"][0]
    features = session.encode(inputs, Clock())
    [(request, _)] = rows(
        session, {name: value[:, :-3] if name in OVER_TOKENS else value for name, value in inputs.items()}
    )
    _, talk = session.prefill(request, features, Clock())
    np.testing.assert_allclose(extend(session, talk, ids[-3:]), whole[-3:], atol=1e-5)


@pytest.mark.parametrize("family", ["idefics3", "llava", "qwen2_5_vl"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_transformers_logits_where_there_is_no_padding(
    built: Callable[[str], Path], checkpoint: Callable[..., Path], family: str, side: str
) -> None:
    import torch

    inputs = padded_batch(family, side)
    found = load(built(family)).forward(inputs)["logits"]
    with torch.no_grad():
        given = {name: torch.from_numpy(value) for name, value in inputs.items()}
        wanted = checkpoints.original(checkpoint(family))(**given).logits.numpy()
    real = inputs["attention_mask"].astype(bool)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found[real], wanted[real], atol=1e-4)
    assert not found[~real].any()


def padded_batch(family: str, side: str) -> dict[str, np.ndarray]:
    """Two requests with a picture each, the second four tokens shorter and padded on one side."""
    one, other = checkpoints.example(family, 0), checkpoints.example(family, 1)
    if family == "qwen2_5_vl":
        other["image_grid_thw"] = np.array([[1, 6, 4]], np.int64)  # as many tokens, in other places
    batch = {}
    for name in one:
        second = other[name]
        if name in OVER_TOKENS:
            kept, gap = second[:, :-4], np.zeros((1, 4), second.dtype)
            second = np.concatenate([gap, kept] if side == "left" else [kept, gap], axis=1)
        batch[name] = np.concatenate([one[name], second])
    return batch


def test_pictures_that_no_placeholder_asks_for_are_refused(deployment: Path) -> None:
    inputs = checkpoints.example("idefics3")
    inputs["input_ids"] = np.where(inputs["input_ids"] == checkpoints.IMAGE_TOKEN, 9, inputs["input_ids"])
    with pytest.raises(InputError, match="0 picture placeholders where the pictures give 18 features"):
        load(deployment).forward(inputs)


def test_more_than_the_cache_holds_is_refused_and_forgotten(session: ModelSession) -> None:
    capacity = session.model.decoder.kv_capacity
    with pytest.raises(CapacityExceeded, match=f"{capacity + 1} more positions do not fit a KV cache that holds 0 of"):
        session.prefill(Request(np.full(capacity + 1, 9), {}), {}, Clock())
    _, talk = session.prefill(Request(np.full(capacity - 2, 9), {}), {}, Clock())
    with pytest.raises(CapacityExceeded, match=f"3 more positions .* holds {capacity - 2} of {capacity}"):
        session.extend(STEPS[:3], talk, Clock())
    assert talk.cache.length == capacity - 2
    assert np.isfinite(session.extend(STEPS[:2], talk, Clock())).all()


@pytest.mark.parametrize("wrong", [np.zeros((1, 1, 5), np.float32), np.zeros((1, 1, 32), np.float64)])
def test_what_the_library_refuses_is_a_stage_error_and_leaves_no_trace(
    session: ModelSession, wrong: np.ndarray
) -> None:
    _, talk = session.prefill(Request(PROMPT, {}), {}, Clock())
    _, other = session.prefill(Request(PROMPT, {}), {}, Clock())
    ones, position = np.ones((1, len(PROMPT) + 1), np.int64), np.array([[len(PROMPT)]])
    feed = {"inputs_embeds": wrong, "attention_mask": ones, "position_ids": position, "logits_positions": position[0]}
    with pytest.raises(StageError, match=r"decoder.*\.onnx: "):
        session.decoder.step(feed, talk.cache)
    assert talk.cache.length == len(PROMPT)
    assert extend(session, talk, STEPS).tobytes() == extend(session, other, STEPS).tobytes()


@pytest.mark.parametrize("wrong", ["words", np.zeros((1, 2)), np.zeros((1, 2, 3), np.int64)])
def test_what_an_engine_refuses_is_a_stage_error(session: ModelSession, wrong: object) -> None:
    with pytest.raises(StageError, match=r"embed_tokens.*\.onnx: "):
        session.engines["embed_tokens"].run({"input_ids": wrong, "image_features": np.zeros((0, 32), np.float32)})


class Untouched:
    """Stands for an engine: what it takes is known, but it may not run."""

    def __init__(self, graph: Graph) -> None:
        self.inputs = {spec.name: spec.shape for spec in graph.inputs}
        self.types = {spec.name: spec.dtype for spec in graph.inputs}

    def __getattr__(self, name: str) -> None:
        raise AssertionError(f"{name} was asked for")


@pytest.fixture
def idle(deployment: Path) -> object:
    """The runtime with a session in which no module may run."""
    runtime = load(deployment)
    for model in runtime.deployment.models:
        graphs = {name: runtime.deployment.module(module).graphs[0] for name, module in model.components.items()}
        engines = {name: Untouched(graph) for name, graph in graphs.items()}
        runtime._sessions[model.name] = ModelSession(model, deployment, engines, engines.pop("decoder"))
    return runtime


@pytest.mark.parametrize("route", ["edge", "cloud", "split"])
def test_a_request_beyond_the_capacity_is_refused_before_anything_runs(idle: object, picture: Path, route: str) -> None:
    with pytest.raises(
        CapacityExceeded, match=r"\d+ prompt tokens and 250 new ones exceed the KV cache of 256"
    ) as caught:
        idle.generate("what is it?", image=picture, max_new_tokens=250, route=route)
    assert caught.value.exit_code == 2


def test_a_forward_beyond_the_capacity_is_refused_before_anything_runs(idle: object) -> None:
    with pytest.raises(CapacityExceeded, match="257 prompt tokens and 0 new ones exceed the KV cache of 256"):
        idle.forward({"input_ids": np.full((1, 257), 9)})


def test_pictures_beyond_the_capacity_are_refused_before_they_are_encoded(idle: object) -> None:
    inputs = checkpoints.example("idefics3")
    inputs["input_ids"] = np.concatenate([inputs["input_ids"], np.full((1, 300), 9)], axis=1)
    with pytest.raises(CapacityExceeded, match="exceed the KV cache of 256"):
        idle.forward({name: inputs[name] for name in ("input_ids", "pixel_values")})


@pytest.mark.parametrize("capacity", [1, 2, 5])
def test_the_warm_up_fits_a_small_cache(deployment: Path, capacity: int) -> None:
    runtime = load(deployment)
    [model, *_] = runtime.deployment.models
    small = model.model_copy(update={"decoder": model.decoder.model_copy(update={"kv_capacity": capacity})})
    assert runtime.deployment.runtime.warm_up > 0
    assert runtime.engines.session(small).model.decoder.kv_capacity == capacity


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"prompt": " \n"}, PromptError, "the prompt is empty"),
        (
            {"prompt": "x", "route": "moon"},
            InputError,
            "route 'moon' is not one this deployment has: choose edge, cloud, split, text",
        ),
        *(
            ({"prompt": "x", "max_new_tokens": count}, InputError, "ask for at least one token")
            for count in (0, 1.5, "3")
        ),
        *(({"prompt": prompt}, PromptError, "the prompt is given as") for prompt in (None, b"x")),
        ({"prompt": ["x"]}, PromptError, "message 0 is 'x'"),
        *(({"prompt": "x", "image": given}, PictureError, "a picture is given as") for given in (123, IDS, [None])),
        ({"prompt": "x", "image": ""}, PictureError, "the path of the picture is empty"),
        ({"prompt": "x", "seed": 1.5}, InputError, "seed is 1.5"),
        ({"prompt": "x", "temperature": "x"}, InputError, "temperature is 'x'"),
        ({"prompt": "x", "image": b"no picture"}, PictureError, "not an image"),
        ({"prompt": "x", "temperature": -1.0}, InputError, "temperature"),
        ({"prompt": "x", "temprature": 1.0}, InputError, "temprature .* did you mean temperature?"),
        ({"prompt": "broken \udcff"}, PromptError, "UTF-8|surrogate|encod"),
    ],
)
def test_wrong_requests_are_refused_before_anything_runs(idle: object, options: dict, error: type, said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        idle.generate(**options)
    assert caught.value.exit_code == 2


def test_a_model_that_the_deployment_lacks_is_named(idle: object) -> None:
    with pytest.raises(InputError, match="model 'moon' is not one this deployment has: choose edge"):
        idle.forward({"input_ids": np.ones((1, 2), np.int64)}, model="moon")


@pytest.mark.parametrize("family", ["idefics3", "llava", "qwen2_5_vl"])
def test_pixels_that_no_processor_gives_are_refused(built: Callable[[str], Path], family: str) -> None:
    runtime, inputs = load(built(family)), checkpoints.example(family)
    for wrong in (inputs["pixel_values"].astype(np.float64), np.zeros(inputs["pixel_values"].shape, np.uint8)):
        with pytest.raises(InputError, match=r"pixel_values has type \w+ where this model takes float32"):
            runtime.forward({**inputs, "pixel_values": wrong})


@pytest.mark.parametrize("family", ["idefics3", "llava", "qwen2_5_vl"])
@pytest.mark.parametrize("part", [np.s_[0, 0], np.s_[..., 4:]])
def test_pixels_of_another_shape_than_the_graph_takes_are_refused_with_both_shapes(
    built: Callable[[str], Path], family: str, part: object
) -> None:
    runtime, inputs = load(built(family)), checkpoints.example(family)
    with pytest.raises(
        InputError, match=r"pixel_values has shape \(.*\) where this model takes \(|does not describe the"
    ):
        runtime.forward({**inputs, "pixel_values": np.ascontiguousarray(inputs["pixel_values"][part])})


def test_a_cache_beyond_all_memory_is_refused_with_its_bytes(deployment: Path) -> None:
    session = load(deployment).session("edge")
    size = 2**50 * 2 * 2 * 2 * 8 * 4
    with pytest.raises(
        DeploymentError, match=f"kv_capacity is {2**50}, for which this machine has not the {size} bytes"
    ):
        session.decoder.new_cache(2**50)


@pytest.mark.parametrize("route", ["edge", "cloud", "split"])
def test_a_placeholder_without_a_picture_is_refused(deployment: Path, route: str) -> None:
    with pytest.raises(InputError, match="holds 2 picture placeholders where the pictures give 0 features"):
        load(deployment).generate("<image> <image>", route=route)


@pytest.mark.parametrize("family", ["idefics3", "llava", "qwen2_5_vl"])
def test_a_forward_with_a_placeholder_alone_is_refused(built: Callable[[str], Path], family: str) -> None:
    with pytest.raises(InputError, match="holds 1 picture placeholder where the pictures give 0 features"):
        load(built(family)).forward({"input_ids": np.array([[9, checkpoints.IMAGE_TOKEN, 9]])})


def test_a_prefill_with_a_placeholder_alone_is_refused(session: ModelSession) -> None:
    with pytest.raises(InputError, match="holds 1 picture placeholder where"):
        session.prefill(Request(np.array([9, checkpoints.IMAGE_TOKEN]), {}), {}, Clock())


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"pixel_value": np.zeros(3)}, "'pixel_value' is not an input of idefics3: did you mean pixel_values?"),
        ({"image_grid_thw": IDS}, "'image_grid_thw' is not an input of idefics3: give attention_mask, input_ids"),
        ({"position_ids": IDS}, "'position_ids' is not an input"),
        ({"image_features": IDS}, "'image_features' is not an input"),
        ({"input_ids": IDS * 1.5}, "input_ids are float64 where whole numbers are needed"),
        ({"input_ids": IDS > 0}, "input_ids are bool"),
        ({"input_ids": [["a"]]}, "input_ids are <U1"),
        ({"input_ids": [[1], [1, 2]]}, "input_ids is no array"),
        ({"input_ids": IDS[0]}, "forward needs input_ids"),
        ({"input_ids": IDS[:, :0]}, "row 0 of the batch has no token"),
        ({"attention_mask": IDS * 0.5}, "attention_mask are float64"),
        ({"attention_mask": IDS * 0}, "row 0 of the batch has no token"),
        ({"input_ids": np.tile(IDS, (2, 1)), "attention_mask": [[1, 1, 1], [0, 0, 0]]}, "row 1 of the batch"),
    ],
)
def test_inputs_that_would_not_be_used_as_given_are_refused(idle: object, inputs: dict, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        idle.forward({"input_ids": IDS, **inputs})


def test_inputs_without_names_are_refused(idle: object) -> None:
    with pytest.raises(InputError, match="forward takes named inputs, not ndarray"):
        idle.forward(IDS)


def test_token_types_say_nothing_new(deployment: Path) -> None:
    runtime, types = load(deployment), {"mm_token_type_ids": IDS * 0, "token_type_ids": IDS * 0}
    plain = runtime.forward({"input_ids": IDS.tolist()})["logits"]
    assert np.array_equal(runtime.forward({"input_ids": IDS.astype(np.uint16), **types})["logits"], plain)


def test_places_are_counted_in_the_text_that_an_encoder_reads() -> None:
    encoder = SimpleNamespace(modality="image", placeholder=7)
    facts = SimpleNamespace(tokens="decoder_input_ids", hidden_size=2)
    session = cast(ModelSession, SimpleNamespace(model=SimpleNamespace(encoders=(encoder,)), facts=facts))
    asked = Request(np.array([2]), {"input_ids": np.array([[7, 5, 7]])})
    ModelSession.check_placeholders(session, asked, {"image_features": np.zeros((2, 2))})
    with pytest.raises(InputError, match="holds 2 picture placeholders where the pictures give 3 features"):
        ModelSession.check_placeholders(session, asked, {"image_features": np.zeros((3, 2))})


@pytest.mark.parametrize("folder", [None, 3, b"folder"])
def test_a_folder_that_is_no_path_is_refused(folder: object) -> None:
    with pytest.raises(InputError, match="give the path of its folder"):
        load(folder)


def test_places_are_counted_where_a_mask_tells_them() -> None:
    """Kosmos takes any ids there."""
    encoder = SimpleNamespace(modality="image", placeholder=7)
    facts = SimpleNamespace(tokens="input_ids", hidden_size=2)
    session = cast(ModelSession, SimpleNamespace(model=SimpleNamespace(encoders=[encoder]), facts=facts))
    asked = Request(np.array([1, 2, 3]), {"image_embeds_position_mask": np.array([[0, 1, 1]])})
    ModelSession.check_placeholders(session, asked, {"image_features": np.zeros((2, 2))})
    with pytest.raises(InputError, match="holds 2 picture placeholders where the pictures give 1 feature"):
        ModelSession.check_placeholders(session, asked, {"image_features": np.zeros((1, 2))})


def test_a_placeholder_that_the_model_writes_is_a_token_as_any_other(
    session: ModelSession, checkpoint: Callable[[str], Path]
) -> None:
    """Also several at once, as a draft may hold them."""
    written = np.array([checkpoints.IMAGE_TOKEN, 20, checkpoints.IMAGE_TOKEN])
    _, talk = session.prefill(Request(PROMPT, {}), {}, Clock())
    found = session.extend(written, talk, Clock())
    with torch.no_grad():
        original = checkpoints.original(checkpoint("idefics3"))
        wanted = original(input_ids=torch.from_numpy(np.concatenate([PROMPT, written])[None])).logits[0, -3:]
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)


def test_a_prompt_that_no_tokens_could_hold_is_refused_before_they_are_looked_for(session: ModelSession) -> None:
    capacity = session.facts.kv_capacity
    session.prepare("a " * (32 * capacity), ())  # may fit by its letters, whatever its tokens are
    began = time.perf_counter()
    with pytest.raises(CapacityExceeded, match=f"of 2000000 characters exceeds the KV cache of {capacity} tokens"):
        session.prepare("a " * 1_000_000, ())
    assert time.perf_counter() - began < 0.5
