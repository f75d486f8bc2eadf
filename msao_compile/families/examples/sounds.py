"""Sounds as feature extractors hand them over: log-mel frames, waveforms or codes, with their masks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from msao_compile.families.examples.kinds import Arrays, Sight, Trial, noise, whole

MASKS = ("input_features_mask", "feature_attention_mask", "audio_attention_mask", "input_values_mask", "padding_mask")
BINS = (
    "num_mel_bins",
    "n_mel_bins",
    "input_feat_per_channel",
    "input_feat_size",
    "input_size",
    "input_dim",
    "feature_size",
    "audio_embed_dim",
    "mel_bins",
)

# Mel bins where the config states none or states something else: of usual extractors, then of tiny models.
USUAL_BINS = (80, 128, 64, 160, 40, 32, 16)


def sounds(sight: Sight, variant: int, chance: np.random.Generator) -> Iterator[Trial]:
    """Candidates for the sounds of one request: one, one of another length, two."""
    if "audio_input_ids" in sight.forward:
        yield from codes(sight, variant, chance)
    elif "input_values" in sight.takes("audio") and "input_features" not in sight.takes("audio"):
        yield from waves(sight, variant, chance)
    elif "is_longer" in sight.forward:
        yield from fused(sight, variant, chance)
    else:
        yield from mels(sight, variant, chance)
        if "input_values" in sight.forward:
            yield from waves(sight, variant, chance)


def mask_name(sight: Sight) -> str | None:
    """The name of the sounds' mask; an encoder-decoder without text has `attention_mask` for it."""
    found = next((name for name in MASKS if name in sight.takes("audio")), None)
    if found is None and "input_ids" not in sight.forward and "attention_mask" in sight.forward:
        return "attention_mask"
    return found


def lengths(sight: Sight, variant: int) -> Iterator[tuple[int, int, int]]:
    """Frames given, frames that are sound, and windows of one sound: free lengths first, then fixed windows."""
    audio = sight.audio
    window = int(getattr(audio, "n_window", 0) or 0)
    if "max_source_positions" in dir(audio) and not window:
        fixed = 2 * int(audio.max_source_positions)
        valid = (fixed * 2 // 5, fixed * 4 // 5, fixed * 2 // 5)[variant]
        for free in ((64, 96, 64)[variant], (40, 60, 40)[variant], (200, 320, 200)[variant]):
            if free != fixed:
                yield free, free, 1
        valid = fixed if mask_name(sight) in (None, "attention_mask") else valid
        if variant == 1 and "input_ids" in sight.forward:
            yield fixed, valid, 2
        yield fixed, valid, 1
        return
    for base in (4 * window, 62, 64, 40, 200, 480, 3000):
        if base:
            frames = (base, base * 3 // 2, base)[variant]
            yield frames, frames, 1


def mels(sight: Sight, variant: int, chance: np.random.Generator) -> Iterator[Trial]:
    """Log-mel frames [sounds, bins, frames] or [sounds, frames, bins], with a mask [sounds, frames] if it has one."""
    stated = [size for size in sizes(sight) if size]
    key = "audio_input_features" if "audio_input_features" in sight.forward else "input_features"
    items = 2 if variant == 2 else 1
    for frames, valid, windows in lengths(sight, variant):
        for bins in dict.fromkeys((*stated, *USUAL_BINS)):
            for last in (False, True):
                count = items * windows
                shape = (count, frames, bins) if last else (count, bins, frames)
                features = noise(chance, *shape)
                inputs: Arrays = {key: features}
                name = mask_name(sight)
                # Extractors of one fixed length pad to it, and their encoder-decoders hear the padding too.
                padded = name == "attention_mask" and frames == 2 * sight.number("max_source_positions", default=0)
                if name is not None and name != "audio_attention_mask" and not padded:
                    inputs[name] = mask_of(count, frames, valid, windows, name, last)
                if "audio_embed_sizes" in sight.forward:
                    rate = sight.number("time_reduction", default=8, of=sight.audio)
                    down = sight.number("downsample_rate", default=1, of=sight.audio)
                    inputs["audio_embed_sizes"] = whole([math.ceil(math.ceil(frames / rate) / down)] * items)
                if "chunk_sample_lengths" in sight.forward:
                    inputs["chunk_sample_lengths"] = whole([frames] * count)
                chunk = getattr(sight.config, "audio_chunk_size", None)
                if "padding_mask" in sight.forward and isinstance(chunk, int):
                    inputs["padding_mask"] = np.ones((items, windows * chunk), np.int64)
                yield Trial("log-mel frames", inputs, items, runs=None if "input_ids" in sight.forward else ())


def mask_of(count: int, frames: int, valid: int, windows: int, name: str, last: bool) -> np.ndarray:
    """Which frames are sound. Extractors that put frames first give bool, the older ones whole numbers.

    Of a sound in several windows all but the last are full.
    """
    mask = np.ones((count, frames), np.int64)
    mask[windows - 1 :: windows, valid:] = 0
    return mask.astype(bool) if last and name != "attention_mask" else mask


def sizes(sight: Sight) -> Iterator[int]:
    """Mel bins that the config states, the audio part's first."""
    for part in (sight.audio, sight.config):
        for name in BINS:
            value: Any = getattr(part, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                yield value


def waves(sight: Sight, variant: int, chance: np.random.Generator) -> Iterator[Trial]:
    """Waveforms [sounds, samples] or [sounds, 1, samples], with a mask where the family takes one."""
    items, name = 2 if variant == 2 else 1, mask_name(sight)
    for base in (3200, 16000, 38400):
        samples = (base, base * 2, base)[variant]
        for shape in ((items, samples), (items, 1, samples)):
            masks: tuple[Arrays, ...] = ({},)
            if name is not None:
                ones = np.ones((items, samples), np.int64)
                masks = ({name: ones}, {name: ones.astype(bool)}, {})
            # One waveform of an encoder-decoder is not padded, and most of its extractors say so by no mask at all.
            masks = masks[::-1] if name == "attention_mask" else masks
            for mask in masks:
                inputs = {"input_values": noise(chance, *shape), **mask}
                yield Trial("waveforms", inputs, items, runs=None if "input_ids" in sight.forward else ())


def codes(sight: Sight, variant: int, chance: np.random.Generator) -> Iterator[Trial]:
    """Codes [sounds, frames, codebooks] of an audio codec, with a mask [sounds, frames]."""
    items, frames = 2 if variant == 2 else 1, (6, 9, 6)[variant]
    books = sight.number("num_codebooks", "n_mel_bins", "num_mel_bins", default=8, of=sight.audio)
    high = sight.number("codebook_size", "vocab_size", "mel_vocab_size", default=16, of=sight.audio)
    ids = chance.integers(0, max(2, high), (items, frames, books), dtype=np.int64)
    inputs = {"audio_input_ids": ids, "audio_input_ids_mask": np.ones((items, frames), np.int64)}
    yield Trial("audio codes", inputs, items)


def fused(sight: Sight, variant: int, chance: np.random.Generator) -> Iterator[Trial]:
    """Log-mel pictures [sounds, views, frames, bins]; several views where long sounds are fused."""
    items = (3, 2, 4)[variant]
    bins = sight.number("num_mel_bins", default=64, of=sight.audio)
    side = sight.number("spec_size", default=256, of=sight.audio)
    views = 4 if getattr(sight.audio, "enable_fusion", False) else 1
    frames = side * (side // bins)
    for length in dict.fromkeys((frames, 1001)):
        inputs = {
            "input_features": noise(chance, items, views, length, bins),
            "is_longer": np.zeros((items, 1), bool),
        }
        yield Trial("log-mel pictures", inputs, items, runs=())
