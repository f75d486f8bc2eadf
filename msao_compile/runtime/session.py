"""One loaded model: prompt and pictures in, prefill, decode. The same code serves edge, cloud and parity."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from msao_compile.errors import CapacityExceeded, DeploymentError, InputError, MsaoError, PromptError
from msao_compile.manifest.schema import Model
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.backends.base import Arrays, DecoderEngine, Engine, KVCache
from msao_compile.runtime.family_code import FAMILY_CODE, merge, placeholders
from msao_compile.runtime.preprocess import Preprocessor, decode, from_config
from msao_compile.runtime.tokens import Tokenizer, expand, read_json

if TYPE_CHECKING:
    from PIL.Image import Image

CONTEXT_INPUTS = ("image_grid_thw",)  # what positions need of the pictures; travels with features
PICTURE_SETTINGS = "preprocessor_config.json or processor_config.json"


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


def read_preprocessor(folder: Path, names: Collection[str], tokens: Mapping[str, Any]) -> Preprocessor | None:
    """What the listed files of a folder say of pictures; None where they say nothing.

    `tokens` is the tokenizer's own config, which may rename the special tokens of pictures.

    Raises:
        InputError: a file is damaged, or asks for what is not known.
    """
    config = read_json(folder / "preprocessor_config.json", names)
    processor = read_json(folder / "processor_config.json", names)
    return from_config(config or processor, {**tokens, **processor}) if config or processor else None


class ModelSession:
    """The loaded modules of one model and the host-side code between them.

    Raises:
        DeploymentError: this runtime has no code for the family, or a module or a fact that it needs is missing.
    """

    def __init__(self, model: Model, folder: Path, engines: Mapping[str, Engine], decoder: DecoderEngine) -> None:
        self.model = model
        self.folder = folder
        self.engines = engines
        self.decoder = decoder
        if model.family not in FAMILY_CODE:
            raise DeploymentError(
                f"models.{model.name}.family: {model.family!r} is not one this runtime knows "
                f"({', '.join(FAMILY_CODE)}); install a newer msao-compile"
            )
        self.code = FAMILY_CODE[model.family]
        if "embed_tokens" not in model.components:
            raise DeploymentError(f"models.{model.name}.components has no embed_tokens; build the deployment again")
        for fact in self.code.facts:
            found = model.family_facts.get(fact)
            if not isinstance(found, int) or found < 1:
                raise DeploymentError(
                    f"models.{model.name}.family_facts.{fact} is {found!r} where {model.family} needs a whole number "
                    "above 0; build the deployment again"
                )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Read at the first prompt, so that `forward` works on checkpoints without one."""
        return Tokenizer.load(self.folder / self.model.tokenizer, self._listed(self.model.tokenizer))

    @cached_property
    def preprocessor(self) -> Preprocessor:
        """Read at the first picture."""
        tokenizer = self.folder / self.model.tokenizer / "tokenizer_config.json"
        tokens = read_json(tokenizer, self._listed(self.model.tokenizer))
        folder = self.folder / self.model.preprocessor
        found = read_preprocessor(folder, self._listed(self.model.preprocessor), tokens)
        if found is None:
            raise InputError(
                f"{folder}: no {PICTURE_SETTINGS}, so pictures cannot be prepared; save the checkpoint with its "
                "processor and build again"
            )
        return found

    def warm_up(self) -> None:
        """Read now what the first question needs, so that its time is not the first answer's; absence is no fault."""
        with suppress(MsaoError):
            self.prepare("what?", ())
        with suppress(MsaoError):
            if "vision_encoder" in self.model.components:
                self.preprocessor(())
                decode(b"P6 1 1 255\n\0\0\0")  # a picture of one pixel: imports Pillow's decoders

    def _listed(self, folder: str) -> frozenset[str]:
        """The names in a folder that the manifest lists, whose files are verified: no others are ever read."""
        paths = [PurePosixPath(reference.path) for reference in self.model.files]
        return frozenset(path.name for path in paths if path.parent == PurePosixPath(folder))

    def prepare(self, prompt: str, pictures: Sequence[str | os.PathLike[str] | bytes | Image]) -> Request:
        """Chat template, placeholders, tokens and pixels.

        Raises:
            PromptError: empty or undecodable prompt. PictureError: a picture cannot be used.
            InputError: placeholders without a picture.
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
        ids = np.asarray(self.tokenizer.encode_rendered(text), np.int64)
        if not decoded:
            placeholders(ids, self.model.image_token_id, features=0)
        return Request(ids, tensors)

    def encode(self, tensors: Mapping[str, np.ndarray], clock: Clock) -> np.ndarray | None:
        """Picture features, or None when there is no picture: no encoder runs for text.

        Raises:
            InputError: the model has no encoder, or pixels are of another shape than its graph takes.
        """
        if "pixel_values" not in tensors:
            return None
        if "vision_encoder" not in self.model.components:
            raise InputError(f"model {self.model.name!r} has no vision encoder: ask without a picture")
        engine = self.engines["vision_encoder"]
        with clock.module("vision_encoder"):
            feed = self.code.encoder_inputs(tensors, self.model.family_facts)
            given, wanted = feed["pixel_values"].shape, engine.inputs["pixel_values"]
            if any(isinstance(size, int) and size != found for size, found in zip(wanted, given, strict=True)):
                raise InputError(
                    f"pixel_values have shape {given} where the vision encoder takes {wanted}: give what this "
                    "checkpoint's processor makes"
                )
            return engine.run(feed)["image_features"]

    def embed(self, ids_S: np.ndarray, features: np.ndarray | None, clock: Clock) -> np.ndarray:
        """Merged embeddings [1, S, H]."""
        with clock.module("embed_tokens"):
            embeds = self.engines["embed_tokens"].run({"input_ids": ids_S[None]})["inputs_embeds"]
            if features is None:
                return embeds
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
        """Run the whole prompt; logits [rows, vocabulary] of its last position, or of every one.

        Raises:
            InputError: placeholders and features differ in number.
        """
        if features is None:
            placeholders(request.ids, self.model.image_token_id, features=0)
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
