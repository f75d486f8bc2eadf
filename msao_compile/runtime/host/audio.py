"""Chunks, segments and indices of audio towers that cut spectrograms into windows.

Shape suffixes: N recordings, C chunks of all of them, F features of one frame, L frames of one chunk.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from msao_compile.runtime.positions import Ints

Floats = NDArray[np.floating]

TOKENS_PER_CHUNK = 13
"""Tokens that transformers counts for each whole chunk of 100 frames after three convolutions of stride 2."""


def chunk_and_pad_features(
    input_features: Floats, feature_lens: NDArray[np.integer], n_window: int
) -> tuple[Floats, Ints]:
    """Recordings one after the other, cut into chunks of at most 2 * `n_window` frames.

    Args:
        input_features: [F, frames of all recordings].
        feature_lens: [N] frames of each recording, none zero.
        n_window: half a chunk.

    Returns:
        `padded_feature` [C, F, L] in the dtype of the features, zeros after a chunk's end; `chunk_lengths` [C] int64.

    Source: transformers/models/qwen2_5_omni/modeling_qwen2_5_omni.py and qwen3_omni_moe, chunk_and_pad_features.
    """
    lengths_C = chunk_lengths(feature_lens, n_window)
    inside_CL = np.arange(lengths_C.max(initial=0)) < lengths_C[:, None]
    padded_CLF = np.zeros((*inside_CL.shape, len(input_features)), dtype=input_features.dtype)
    padded_CLF[inside_CL] = input_features.T
    return np.ascontiguousarray(padded_CLF.transpose(0, 2, 1)), lengths_C


def chunk_lengths(feature_lens: NDArray[np.integer], n_window: int) -> Ints:
    """[C] int64: frames of each chunk; the last chunk of a recording has what is left."""
    lens_N = np.asarray(feature_lens, dtype=np.int64)
    chunk = 2 * n_window
    chunks_N = -(-lens_N // chunk)
    lengths_C = np.full(chunks_N.sum(), chunk, dtype=np.int64)
    lengths_C[chunks_N.cumsum() - 1] = lens_N - (chunks_N - 1) * chunk
    return lengths_C


def audio_cu_seqlens(
    chunk_lengths: NDArray[np.integer],
    feature_lens: NDArray[np.integer] | None = None,
    n_window_infer: int | None = None,
    n_window: int | None = None,
) -> tuple[NDArray[np.int32]]:
    """`cu_seqlens` [segments + 1] int32, in tokens.

    With `chunk_lengths` [C] alone every chunk attends within itself (Qwen2.5-Omni); with `feature_lens` [N] and both
    windows in frames, `n_window_infer // (2 * n_window)` chunks attend to each other (Qwen3-Omni, Qwen3-ASR).

    Source: get_audio_cu_seqlens of transformers/models/qwen2_5_omni, qwen3_omni_moe and qwen3_asr.
    """
    if feature_lens is None or n_window_infer is None or n_window is None:
        return (_ends(halved(np.asarray(chunk_lengths, dtype=np.int64))),)
    segment = int(tokens_after_convolutions(chunk_lengths, n_window).max()) * (n_window_infer // (2 * n_window))
    tokens_N = tokens_after_convolutions(feature_lens, n_window)
    pieces = [np.minimum(np.arange(tokens, 0, -segment), segment) for tokens in tokens_N.tolist()]
    return (_ends(np.concatenate(pieces)),)


def valid_indices(chunk_lengths: NDArray[np.integer], n_window: int | None = None) -> tuple[Ints]:
    """[tokens] int64: the places of true tokens among chunks that are padded to the longest.

    Without `n_window` a chunk went through one convolution of stride 2 (Qwen2.5-Omni), with it through three
    (Qwen3-Omni).

    Source: get_valid_indices of transformers/models/qwen2_5_omni and qwen3_omni_moe.
    """
    frames_C = np.asarray(chunk_lengths, dtype=np.int64)
    tokens_C = halved(frames_C) if n_window is None else tokens_after_convolutions(frames_C, n_window)
    return (np.flatnonzero(np.arange(tokens_C.max()) < tokens_C[:, None]),)


def pool_indices(feature_lens: NDArray[np.integer]) -> tuple[Ints]:
    """[pooled tokens] int64: the first of each two tokens that are averaged; pairs never span two recordings.

    Source: transformers/models/qwen2_5_omni/modeling_qwen2_5_omni.py, get_pool_indices.
    """
    tokens_N = halved(np.asarray(feature_lens, dtype=np.int64))
    starts_N = tokens_N.cumsum() - tokens_N
    pairs = zip(starts_N.tolist(), (tokens_N // 2).tolist(), strict=True)
    return (np.concatenate([start + 2 * np.arange(count) for start, count in pairs]),)


def halved(lengths: Ints) -> Ints:
    """What a convolution of stride 2, kernel 3 and padding 1 leaves of each length."""
    return (lengths - 1) // 2 + 1


def tokens_after_convolutions(lengths: NDArray[np.integer], n_window: int) -> Ints:
    """Tokens of recordings or chunks of `lengths` frames after three convolutions within chunks.

    Source: transformers/models/qwen3_omni_moe/modeling_qwen3_omni_moe.py, _get_feat_extract_output_lengths.
    """
    chunks, rest = np.divmod(np.asarray(lengths, dtype=np.int64), 2 * n_window)
    tokens: Ints = halved(halved(halved(rest))) + chunks * TOKENS_PER_CHUNK
    return tokens


def _ends(lengths: Ints) -> NDArray[np.int32]:
    return np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
