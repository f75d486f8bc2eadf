"""One loaded model: prompt and pictures in, prefill, decode. The same code serves edge, cloud and parity."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from msao_compile.errors import CapacityExceeded, InputError, PromptError
from msao_compile.manifest.schema import Model
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.backends.base import Arrays, DecoderEngine, Engine, KVCache
from msao_compile.runtime.family_code import FAMILY_CODE, merge
from msao_compile.runtime.preprocess import Preprocessor, decode, from_config
from msao_compile.runtime.tokens import Tokenizer, expand

if TYPE_CHECKING:
    from PIL.Image import Image

CONTEXT_INPUTS = ("image_grid_thw",)  # what positions need of the pictures; travels with features


@dataclass(frozen=True)
class Request:
    """A prompt and its pictures as arrays: token ids [S] and the processor's tensors."""

    ids: np.ndarray
    tensors: Arrays


@dataclass
class Conversation:
    """A decoder's state in the middle of an answer; `offset` is the M-RoPE distance of position and index."""

    cache: KVCache
    offset: int


class ModelSession:
    """The loaded modules of one model and the host-side code between them."""

    def __init__(self, model: Model, folder: Path, engines: Mapping[str, Engine], decoder: DecoderEngine) -> None:
        self.model = model
        self.folder = folder
        self.engines = engines
        self.decoder = decoder
        self.code = FAMILY_CODE[model.family]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Read at the first prompt, so that `forward` works on checkpoints without one."""
        return Tokenizer.load(self.folder / self.model.tokenizer)

    @cached_property
    def preprocessor(self) -> Preprocessor:
        """Read at the first picture."""
        folder = self.folder / self.model.preprocessor
        found = {
            name: json.loads((folder / name).read_bytes())
            for name in ("preprocessor_config.json", "processor_config.json")
            if (folder / name).is_file()
        }
        if not found:
            raise InputError(
                f"{folder}: no preprocessor_config.json or processor_config.json, so pictures cannot be "
                "prepared; save the checkpoint with its processor and build again"
            )
        tokens = json.loads((self.folder / self.model.tokenizer / "tokenizer_config.json").read_bytes())
        processor = found.get("processor_config.json", {})
        return from_config(found.get("preprocessor_config.json", processor), {**tokens, **processor})

    def prepare(self, prompt: str, pictures: Sequence[str | os.PathLike[str] | bytes | Image]) -> Request:
        """Chat template, placeholders, tokens and pixels.

        Raises:
            PromptError: empty or undecodable prompt. PictureError: a picture cannot be used.
        """
        if not prompt.strip():
            raise PromptError("the prompt is empty: ask something")
        decoded = [decode(picture) for picture in pictures]
        content = [*({"type": "image"} for _ in decoded), {"type": "text", "text": prompt}]
        text = self.tokenizer.render([{"role": "user", "content": content}], add_generation_prompt=True)
        tensors: Arrays = {}
        if decoded:
            prepared = self.preprocessor(decoded)
            text, tensors = expand(text, self.preprocessor.placeholder, prepared.expansions), prepared.tensors
        return Request(np.asarray(self.tokenizer.encode_rendered(text), np.int64), tensors)

    def encode(self, tensors: Mapping[str, np.ndarray], clock: Clock) -> np.ndarray | None:
        """Picture features, or None when there is no picture: no encoder runs for text."""
        if "pixel_values" not in tensors:
            return None
        with clock.module("vision_encoder"):
            return self.engines["vision_encoder"].run(self.code.encoder_inputs(tensors, self.model.family_facts))[
                "image_features"
            ]

    def embed(self, ids_S: np.ndarray, features: np.ndarray | None, clock: Clock) -> np.ndarray:
        """Merged embeddings [1, S, H]."""
        with clock.module("embed_tokens"):
            embeds = self.engines["embed_tokens"].run({"input_ids": ids_S[None]})["inputs_embeds"]
            if features is None:
                return embeds
            assert self.model.image_token_id is not None  # a model with a vision encoder has one
            return merge(embeds[0], ids_S, features, self.model.image_token_id)[None]

    def check_capacity(self, prompt_tokens: int, new_tokens: int) -> None:
        """Refuse before anything runs.

        Raises:
            CapacityExceeded: prompt and answer together are longer than the KV cache.
        """
        capacity = self.model.decoder.kv_capacity
        if prompt_tokens + new_tokens > capacity:
            raise CapacityExceeded(
                f"{prompt_tokens} prompt tokens and {new_tokens} new ones exceed the KV cache of {capacity}: shorten "
                "the prompt, lower max_new_tokens, or raise shapes.decoder.kv_capacity in the recipe and build again"
            )

    def prefill(
        self, request: Request, features: np.ndarray | None, clock: Clock, every: bool = False
    ) -> tuple[np.ndarray, Conversation]:
        """Run the whole prompt; logits [rows, vocabulary] of its last position, or of every one."""
        return self.prefill_embeds(self.embed(request.ids, features, clock), self.positions(request), clock, every)

    def positions(self, request: Request) -> tuple[np.ndarray, int]:
        """Position ids of the prompt and the offset of the tokens after it."""
        return self.code.positions(request.ids, request.tensors, self.model.family_facts)

    def prefill_embeds(
        self, embeds: np.ndarray, positions: tuple[np.ndarray, int], clock: Clock, every: bool = False
    ) -> tuple[np.ndarray, Conversation]:
        """As `prefill`, from merged embeddings: what crosses the partition point after `embed_tokens`."""
        length = embeds.shape[1]
        talk = Conversation(self.decoder.new_cache(self.model.decoder), positions[1])
        rows = np.arange(0 if every else length - 1, length, dtype=np.int64)
        with clock.module("decoder"):
            logits = self.decoder.step(_feed(embeds, talk.cache.length, positions[0], rows), talk.cache)
        return logits[0], talk

    def extend(self, ids_S: np.ndarray, talk: Conversation, clock: Clock) -> np.ndarray:
        """Append tokens (one to decode, several to verify); logits [S, vocabulary] of each."""
        embeds = self.embed(ids_S, None, clock)
        start, count = talk.cache.length, len(ids_S)
        positions = np.arange(start, start + count, dtype=np.int64)[None] + talk.offset
        if self.model.decoder.position == "mrope":
            positions = np.ascontiguousarray(np.broadcast_to(positions, (3, *positions.shape)))
        with clock.module("decoder"):
            rows = np.arange(count, dtype=np.int64)
            logits: np.ndarray = self.decoder.step(_feed(embeds, start, positions, rows), talk.cache)[0]
        return logits


def _feed(embeds: np.ndarray, past: int, positions: np.ndarray, rows: np.ndarray) -> Arrays:
    mask = np.ones((1, past + embeds.shape[1]), np.int64)
    return {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions, "logits_positions": rows}
