"""What crosses a partition point is all that the other side needs, for the prompt and for the tokens after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from msao_compile.manifest.schema import DecoderFacts, Encoder, Model
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.routes import crossing
from msao_compile.runtime.session import ModelSession, Request

Arrays = dict[str, np.ndarray]
STATES = np.arange(8, dtype=np.float32).reshape(2, 4)


class Stand:
    """Stands for a module."""

    def __init__(self, inputs: dict[str, tuple[int | str, ...]], made: Callable[[Arrays], Arrays]) -> None:
        self.inputs, self.run = inputs, made
        self.types = {name: "int64" if name.endswith("ids") else "float32" for name in inputs}


def session() -> ModelSession:
    """An embedding that reads what an encoder made, at every token, before a decoder that does not."""
    engines = {
        "vision_encoder": Stand({"pixel_values": ("n", 4)}, lambda fed: {"encoder_states": fed["pixel_values"]}),
        "embed_tokens": Stand(
            {"decoder_input_ids": (1, "sequence_length"), "encoder_states": ("n", 4)},
            lambda fed: {"inputs_embeds": fed["encoder_states"][None]},
        ),
    }
    facts = DecoderFacts(
        hidden_size=4, vocab_size=9, kv_capacity=9, tokens="decoder_input_ids", position=None, facts={}, start_token=2
    )
    encoder = Encoder(component="vision_encoder", modality="image", inputs=("pixel_values",), each=False)
    model = Model(
        name="edge", role="draft", family="any", components=dict.fromkeys(engines, "a" * 64), encoders=(encoder,),
        decoder=facts, tokenizer="t", preprocessor="p", files=(),
    )  # fmt: skip
    decoder = Stand({"inputs_embeds": (1, "sequence_length", 4)}, dict)
    return ModelSession(model, Path(), engines, decoder)  # type: ignore[arg-type]


def test_what_the_embedding_reads_at_every_token_crosses_behind_it_too() -> None:
    request = Request(np.array([2]), {"pixel_values": STATES})
    message = crossing(session(), request, {"vision_encoder", "embed_tokens"}, Clock())
    assert message.fields["form"] == "embeds"
    assert sorted(message.tensors) == ["encoder_states", "inputs_embeds", "position_ids"]
    assert np.array_equal(message.tensors["encoder_states"], STATES)
