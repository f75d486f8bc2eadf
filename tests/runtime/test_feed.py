"""What a module is fed: what is known as it takes it, nothing where a request has nothing, and no other shape."""

from __future__ import annotations

import numpy as np
import pytest

from msao_compile.errors import InputError
from msao_compile.runtime.feed import absent, feed


class Takes:
    """Stands for an engine that takes these inputs."""

    def __init__(self, **inputs: tuple[str, tuple[int | str, ...]]) -> None:
        self.inputs = {name: shape for name, (_, shape) in inputs.items()}
        self.types = {name: kind for name, (kind, _) in inputs.items()}


FEATURES = ("9*tiles", 32)


@pytest.mark.parametrize(
    ("name", "shape", "nothing"),
    [
        ("image_features", FEATURES, (0, 32)),  # no picture, no rows
        ("image_features", ("tiles*9 + 7", 32), (0, 32)),
        ("image_features", ("batch_size", "num_images", 32), (1, 0, 32)),
        ("token_type_ids", ("batch_size", "sequence_length"), (1, 5)),  # over tokens: one for each
        ("per_layer_inputs", (1, "sequence_length", 2, 8), (1, 5, 2, 8)),
        ("mask", ("batch_size", 1, "sequence_length", "num_images"), (1, 1, 5, 1)),  # one key, which the mask hides
        ("cross_key_values.3", (1, 2, "encoder_length", 8), (1, 2, 1, 8)),
        ("cross_key_values", (1, "17*num_images", 8), (1, 17, 8)),  # as many as a mask of one picture hides
        ("cross_key_values", (1, "(num_images + 1)*4 // 2", 8), (1, 4, 8)),
        ("audio_features", (4, 8), (4, 8)),
    ],
)
def test_what_a_request_lacks_has_the_shape_of_nothing(
    name: str, shape: tuple[int | str, ...], nothing: tuple[int, ...]
) -> None:
    assert absent(name, shape, (1, 5)) == nothing


def test_every_input_but_the_state_is_fed() -> None:
    engine = Takes(
        inputs_embeds=("float32", ("batch_size", "sequence_length", 4)),
        image_features=("float32", FEATURES),
        attention_mask=("int64", ("batch_size", "total_sequence_length")),
        **{"past_key_values.0.key": ("float32", ("batch_size", 2, "past_sequence_length", 8))},
    )
    known = {"inputs_embeds": np.ones((1, 3, 4), np.float32), "attention_mask": np.ones((1, 9), np.int64), "more": 1}
    found = feed(engine, known, (1, 3))
    assert {name: (str(value.dtype), value.shape) for name, value in found.items()} == {
        "inputs_embeds": ("float32", (1, 3, 4)), "image_features": ("float32", (0, 32)),
        "attention_mask": ("int64", (1, 9)),
    }  # fmt: skip


def test_numbers_come_in_the_type_and_order_that_the_module_takes() -> None:
    turned = np.arange(6, dtype=np.int32).reshape(2, 3).T
    found = feed(Takes(mask=("bool", ("n", 2)), ids=("int64", (3, 2))), {"mask": turned, "ids": turned}, (1, 1))
    assert (found["mask"].dtype, found["ids"].dtype, found["ids"].flags.c_contiguous) == (bool, np.int64, True)
    assert found["ids"].tolist() == turned.tolist()


@pytest.mark.parametrize("shape", [(3, 5, 4), (5, 4), (1, 5, 4, 1), (1, 5, 3)])
def test_another_shape_is_refused_with_both(shape: tuple[int, ...]) -> None:
    engine = Takes(pixel_values=("float32", (1, "num_patches", 4)))
    with pytest.raises(InputError) as caught:
        feed(engine, {"pixel_values": np.zeros(shape, np.float32)}, (1, 1))
    assert f"pixel_values has shape {shape} where this model takes (1, 'num_patches', 4)" in str(caught.value)
