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

from msao_compile.errors import CapacityExceeded, InputError, MsaoError
from msao_compile.manifest.schema import DecoderFacts, Model
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.backends.base import Arrays, DecoderEngine, Engine, KVCache
from msao_compile.runtime.conversation import Prompt, conversation
from msao_compile.runtime.encoding import encode
from msao_compile.runtime.feed import CROSS, feed
from msao_compile.runtime.host.rope import rope_index
from msao_compile.runtime.preprocess import Preprocessor, decode, from_config
from msao_compile.runtime.tokens import Tokenizer, expand, read_json

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURE_SETTINGS = "preprocessor_config.json or processor_config.json"
MEDIA_BYTES = ("pixel", "input_features", "flattened_patches", "audio_input_features")
TYPES = ("token_type_ids", "mm_token_type_ids")
STEP = ("attention_mask", "position_ids", "logits_positions", "input_ids")
"""What each step of a decoder is given anew; one that reads an encoder's text keeps that text's."""
ROPE_INPUTS = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "target_sizes", "target_sizes_videos",
               "use_audio_in_video")  # fmt: skip
LONG_TOKEN = 64
"""Characters that a token is taken to stand for at least, where a tokenizer folds blanks or the like."""
MARKS = "_embeds_position_mask"
"""Ends the name of an input that says itself which tokens stand for features, whatever their ids are."""
NOUNS = {"image": "picture", "video": "video", "audio": "sound"}


@dataclass(frozen=True)
class Request:
    """A prompt and what goes with it as arrays: token ids [S] and the processor's tensors."""

    ids: np.ndarray
    tensors: Arrays


@dataclass
class Conversation:
    """A decoder's state in the middle of an answer; `offset` is the distance of position and index on each axis, and of
    a batch for each row of it.

    `held` is what later steps need beside tokens and state: what encoders made for cross-attention, and masks.
    """

    cache: KVCache
    offset: tuple[float, ...] | np.ndarray
    held: Arrays


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
    """The loaded modules of one model and the host-side code between them."""

    def __init__(
        self, model: Model, folder: Path, engines: Mapping[str, Engine], decoder: DecoderEngine | None
    ) -> None:
        self.model = model
        self.folder = folder
        self.engines = engines
        self._decoder = decoder

    @property
    def decoder(self) -> DecoderEngine:
        """The module that answers.

        Raises:
            InputError: the model has none.
        """
        if self._decoder is None:
            raise InputError(f"model {self.model.name!r} decodes nothing: it compares texts with what they describe")
        return self._decoder

    @property
    def facts(self) -> DecoderFacts:
        """What the manifest tells of the decoder; raises as `decoder`."""
        if self.model.decoder is None:
            raise InputError(f"model {self.model.name!r} decodes nothing: it compares texts with what they describe")
        return self.model.decoder

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

    def prepare(self, prompt: Prompt, pictures: Sequence[str | os.PathLike[str] | bytes | Image]) -> Request:
        """Chat template, placeholders, tokens and pixels.

        Raises:
            PromptError: empty or undecodable prompt, or one for other pictures. PictureError: a picture cannot be used.
            CapacityExceeded: as many letters as no tokens that fit can have.
            InputError: placeholders without a picture.
        """
        messages = conversation(prompt, len(pictures))
        self._refuse_endless(messages)
        decoded = [decode(picture) for picture in pictures]
        text = self.tokenizer.render(messages, add_generation_prompt=True)
        tensors: Arrays = {}
        if decoded:
            prepared = self.preprocessor(decoded)
            text, tensors = expand(text, self.preprocessor.placeholder, prepared.expansions), prepared.tensors
        ids = np.asarray(self.tokenizer.encode_rendered(text), np.int64)
        request = Request(ids, tensors)
        if not decoded:
            self.check_placeholders(request, {})
        return request

    def _refuse_endless(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """A prompt that cannot fit whatever its tokens are: to find them in millions of letters takes half a minute."""
        if self.model.decoder is None or self.facts.tokens != "input_ids":
            return
        given = sum(len(part.get("text", "")) for message in messages for part in message["content"])
        most = self.facts.kv_capacity * max(self.tokenizer.longest, LONG_TOKEN)
        if given > most:
            raise CapacityExceeded(
                f"a prompt of {given} characters exceeds the KV cache of {self.facts.kv_capacity} tokens, which hold "
                f"{most} at most: shorten the prompt, or raise shapes.decoder.kv_capacity in the recipe and build again"
            )

    def encode(self, tensors: Mapping[str, np.ndarray], clock: Clock) -> Arrays:
        """What the encoders make of pictures, clips and sounds; empty for text alone.

        Raises:
            InputError: the model has no encoder for it, or an array is missing or of another shape.
        """
        known = {name for encoder in self.model.encoders for name in encoder.inputs}
        strange = next((name for name in tensors if name.startswith(MEDIA_BYTES) and name not in known), None)
        if strange is not None:
            raise InputError(f"model {self.model.name!r} has no encoder for {strange}: ask without it")
        return encode(self.model, self.engines, tensors, clock)

    def check_placeholders(self, request: Request, encoded: Mapping[str, np.ndarray]) -> None:
        """Refuse a prompt that has room for other features than there are.

        A decoder that reads an encoder's text has its placeholders there; where that text is not, it was looked at
        before the encoder ran.

        Raises:
            InputError: their numbers differ; the message holds both.
        """
        text = request.ids if self.facts.tokens == "input_ids" else request.tensors.get("input_ids")
        if text is None:
            return
        wanted: dict[int, int] = {}
        kinds: dict[int, str] = {}
        for encoder in self.model.encoders:
            if encoder.placeholder is not None:
                rows = encoded.get(f"{encoder.modality}_features")
                count = 0 if rows is None else rows.size // self.facts.hidden_size
                wanted[encoder.placeholder] = wanted.get(encoder.placeholder, 0) + count
                kinds[encoder.placeholder] = NOUNS[encoder.modality]
        marks = [value for name, value in request.tensors.items() if name.endswith(MARKS)]
        for token, features in wanted.items():
            places, kind = int(sum(map(np.count_nonzero, marks or [text == token]))), kinds[token]
            if places != features:
                raise InputError(
                    f"the prompt holds {places} {kind} placeholder{'s'[: places != 1]} where the {kind}s give "
                    f"{features} feature{'s'[: features != 1]}: give a {kind} for each placeholder and no others, and "
                    "use the processor that belongs to this checkpoint"
                )

    def embed(self, ids_BS: np.ndarray, held: Mapping[str, np.ndarray], clock: Clock) -> Arrays:
        """What the decoder takes for these tokens: `inputs_embeds` [B, S, H], features merged into it, and more."""
        engine = self.engines["embed_tokens"]
        with clock.module("embed_tokens"):
            return engine.run(feed(engine, {**held, self.facts.tokens: ids_BS}, ids_BS.shape))

    def check_capacity(self, prompt_tokens: int, new_tokens: int) -> None:
        """Refuse before anything runs.

        Raises:
            CapacityExceeded: prompt and answer together are longer than the KV cache.
        """
        capacity = self.facts.kv_capacity
        if prompt_tokens + new_tokens > capacity:
            raise CapacityExceeded(
                f"{prompt_tokens} prompt tokens and {new_tokens} new ones exceed the KV cache of {capacity}: shorten "
                "the prompt, lower max_new_tokens, or raise shapes.decoder.kv_capacity in the recipe and build again"
            )

    def room(self, prompt_tokens: int, asked: int | None) -> int:
        """How many new tokens to make at most: as many as were asked for, or else as fit.

        Raises:
            CapacityExceeded: as `check_capacity`.
        """
        self.check_capacity(prompt_tokens, 1 if asked is None else asked)
        return self.facts.kv_capacity - prompt_tokens if asked is None else asked

    def prefill(
        self,
        request: Request,
        encoded: Mapping[str, np.ndarray],
        clock: Clock,
        every: bool = False,
        cache: KVCache | None = None,
    ) -> tuple[np.ndarray, Conversation]:
        """Run the whole prompt; logits [rows, vocabulary] of its last position, or of every one.

        `cache` is an empty one to use; without it a new one is made.

        Raises:
            InputError: placeholders and features differ in number.
        """
        self.check_placeholders(request, encoded)
        held = {**self.context(request.tensors), **encoded}
        embeds = self.embed(request.ids[None], held, clock)
        return self.prefill_embeds({**held, **embeds}, self.positions(request), clock, every, cache)

    @property
    def takes_batches(self) -> bool:
        """Whether several requests can go through side by side."""
        engines = (self.engines["embed_tokens"], self.decoder)
        return all(shape[:1] != (1,) for engine in engines for shape in engine.inputs.values())

    def prefill_batch(self, requests: Sequence[Request], clock: Clock) -> tuple[np.ndarray, Conversation]:
        """Run prompts of one length together; logits [B, S, vocabulary] of every position.

        Raises:
            InputError: their lengths differ, or as in `prefill`.
        """
        lengths = sorted({len(request.ids) for request in requests})
        if len(lengths) > 1:
            raise InputError(f"prompts of {lengths[0]} and {lengths[-1]} tokens are no batch: give those of one length")
        rows: list[Arrays] = []
        for request in requests:
            encoded = self.encode(request.tensors, clock)
            self.check_placeholders(request, encoded)
            rows.append({**self.context(request.tensors), **encoded})
        held = self._joined(rows)
        embeds = self.embed(np.stack([request.ids for request in requests]), held, clock)
        known, places = {**held, **embeds}, [self.positions(request) for request in requests]
        talk = Conversation(
            self.decoder.new_cache(self.facts.kv_capacity, len(requests)),
            np.array([offset for _, offset in places]).T,
            self.later(known),
        )
        positions = np.concatenate([one for one, _ in places], axis=places[0][0].ndim - 2)
        return self._step(known, positions, np.arange(lengths[0], dtype=np.int64), talk, clock), talk

    def _joined(self, rows: Sequence[Arrays]) -> Arrays:
        """What several requests hold as one: along the batch where a tensor has one, else one item after another."""
        shapes = {**self.engines["embed_tokens"].inputs, **self.decoder.inputs}
        axes = {name: shape.index("batch_size") if "batch_size" in shape else 0 for name, shape in shapes.items()}
        names = dict.fromkeys(name for row in rows for name in row if name in axes)
        return {name: np.concatenate([row[name] for row in rows if name in row], axes[name]) for name in names}

    def context(self, tensors: Mapping[str, np.ndarray]) -> Arrays:
        """Of a request's tensors those that embedding and decoder take themselves: masks, token types."""
        taken = {*self.engines["embed_tokens"].inputs, *self.decoder.inputs}
        return {name: np.asarray(value) for name, value in tensors.items() if name in taken - self._anew}

    @property
    def _anew(self) -> set[str]:
        own = self.facts.tokens == "input_ids"
        return {*STEP} if own else {"logits_positions", self.facts.tokens}

    def positions(self, request: Request) -> tuple[np.ndarray, tuple[float, ...]]:
        """Position ids of the prompt, and how far later tokens stand from their index on each axis.

        They count on from the last token, as transformers' `generate` does; a clip may have stood further.
        """
        rule, length = self.facts.position, len(request.ids)
        if rule in (None, "rope"):
            return np.arange(length, dtype=np.int64)[None], (0,)
        media = {name: value for name, value in request.tensors.items() if name in ROPE_INPUTS}
        media |= {name: value[0] for name, value in request.tensors.items() if name == "mm_token_type_ids"}
        mask = request.tensors.get("feature_attention_mask")
        if mask is not None:
            media["audio_seqlens"] = mask.sum(-1)
        positions, _ = rope_index(str(rule), request.ids, self.facts.facts, **media)
        offset = tuple((positions[:, -1] - (length - 1)).tolist())
        return np.ascontiguousarray(positions[:, None]), offset

    def prefill_embeds(
        self,
        known: Mapping[str, np.ndarray],
        positions: tuple[np.ndarray, tuple[float, ...]],
        clock: Clock,
        every: bool = False,
        cache: KVCache | None = None,
    ) -> tuple[np.ndarray, Conversation]:
        """As `prefill`, from merged embeddings: what crosses the partition point after `embed_tokens`."""
        read = [name for name in self.decoder.inputs if name.startswith(CROSS)]
        if self.facts.tokens != "input_ids" and read and not any(name in known for name in read):
            media = " or ".join(encoder.inputs[0] for encoder in self.model.encoders)
            raise InputError(
                f"model {self.model.name!r} answers what its encoder reads, which is not there: give {media}"
            )
        length = known["inputs_embeds"].shape[1]
        cache = self.decoder.new_cache(self.facts.kv_capacity) if cache is None else cache
        talk = Conversation(cache, positions[1], self.later(known))
        rows = np.arange(0 if every else length - 1, length, dtype=np.int64)
        return self._step(known, positions[0], rows, talk, clock)[0], talk

    def later(self, known: Mapping[str, np.ndarray]) -> Arrays:
        """What of the prompt's tensors serves the tokens after it: the last row of those that lie over tokens."""
        found: Arrays = {}
        shapes = {**self.engines["embed_tokens"].inputs, **self.decoder.inputs}
        placed = tuple(f"{entry.modality}_features" for entry in self.model.encoders if entry.placeholder is not None)
        for name, value in known.items():
            if name.startswith(("inputs_embeds", *placed)) or name in {*TYPES, *self._anew} or name not in shapes:
                continue
            over = shapes[name].index("sequence_length") if "sequence_length" in shapes[name] else None
            found[name] = value if over is None else np.take(value, [-1], over)
        return found

    def _step(
        self, known: Mapping[str, np.ndarray], positions: np.ndarray, rows: np.ndarray, talk: Conversation, clock: Clock
    ) -> np.ndarray:
        batch, count = known["inputs_embeds"].shape[:2]
        mask = np.ones((batch, talk.cache.length + count), np.int64)
        step = {"attention_mask": mask, "position_ids": positions, "logits_positions": rows}
        step = {name: value for name, value in step.items() if name in self._anew}
        with clock.module("decoder"):
            fed = feed(self.decoder, {**known, **step}, (batch, count))
            return self.decoder.step({**fed, "inputs_embeds": known["inputs_embeds"]}, talk.cache)

    def extend(self, ids_S: np.ndarray, talk: Conversation, clock: Clock) -> np.ndarray:
        """Append tokens (one to decode, several to verify); logits [S, vocabulary] of each."""
        logits: np.ndarray = self.extend_batch(ids_S[None], talk, clock)[0]
        return logits

    def extend_batch(self, ids_BS: np.ndarray, talk: Conversation, clock: Clock) -> np.ndarray:
        """Append as many tokens to every row of a batch; logits [B, S, vocabulary]."""
        start, (batch, count) = talk.cache.length, ids_BS.shape
        ahead = np.asarray(talk.offset).reshape(-1, batch, 1)
        positions = np.arange(start, start + count) + ahead
        if self.facts.position in (None, "rope"):
            positions = positions[0]
        known = {**talk.held, **self.embed(ids_BS, talk.held, clock)}
        return self._step(known, positions, np.arange(count, dtype=np.int64), talk, clock)
