"""The engines that ship, as a peer: picture, embeddings and decoder through the runtime's own classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from msao_compile.runtime.backends.base import DecoderEngine, Engine
from msao_compile.runtime.feed import feed
from tests.bench.gpu.work import CAPACITY, Work


class EnginesPeer:
    """One request, or a batch of equal ones, on three engines."""

    def __init__(self, engines: Mapping[str, Engine], decoder: DecoderEngine, work: Work) -> None:
        self.engines, self.decoder = engines, decoder
        inputs = np.load(work.layout.inputs)
        self.ids, self.pixels = inputs["input_ids"], inputs["pixel_values"]
        self.cache: Any = None

    def start(self, batch: int) -> np.ndarray:
        """Encode, embed, prefill."""
        pixels = np.tile(self.pixels, (1, batch, 1, 1, 1))
        known = {"pixel_values": pixels, "pixel_attention_mask": np.ones((1, batch, *pixels.shape[3:]), bool)}
        encoder = self.engines["vision_encoder"]
        features = encoder.run(feed(encoder, known, (1, 1)))["image_features"]
        self.cache = self.decoder.new_cache(CAPACITY, batch)
        return self._append(np.tile(self.ids, (batch, 1)), {"image_features": features})

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Embed and decode."""
        return self._append(tokens[:, None], {})

    def _append(self, ids: np.ndarray, more: Mapping[str, np.ndarray]) -> np.ndarray:
        embed, (batch, count), start = self.engines["embed_tokens"], ids.shape, self.cache.length
        embeds = embed.run(feed(embed, {"input_ids": ids, **more}, (batch, count)))
        known = {
            **embeds,
            "attention_mask": np.ones((batch, start + count), np.int64),
            "position_ids": np.tile(np.arange(start, start + count), (batch, 1)),
            "logits_positions": np.array([count - 1]),
        }
        logits: np.ndarray = self.decoder.step(feed(self.decoder, known, (batch, count)), self.cache)[:, -1]
        return logits

    def pick(self, logits: np.ndarray) -> np.ndarray:
        """On the host, as the runtime does."""
        return logits.argmax(-1)

    def tokens(self, numbers: list[int]) -> np.ndarray:
        """As an array."""
        return np.asarray(numbers, np.int64)

    def host(self, logits: np.ndarray) -> np.ndarray:
        """They are there."""
        return logits

    def wait(self) -> None:
        """Engines give arrays on the host: what they were asked for is done."""
