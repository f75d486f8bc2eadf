"""NumPy functions of audio towers equal transformers' own, dtypes included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as qwen2_5_omni
from transformers.models.qwen3_asr import modeling_qwen3_asr as qwen3_asr
from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as qwen3_omni_moe

from msao_compile.runtime.host import audio

LENGTHS = [[37], [200], [201], [100, 400, 399], [1, 2, 3, 1000], [3000, 57], [1600, 1601, 1599]]


def same(ours: tuple[np.ndarray, ...], theirs: Any) -> None:
    theirs = theirs if isinstance(theirs, tuple) else (theirs,)
    for array, tensor in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(array, tensor.numpy(), strict=True)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("n_window", [50, 100])
@pytest.mark.parametrize("model", [qwen2_5_omni, qwen3_omni_moe])
def test_chunks_equal_transformers(model: Any, lengths: list[int], n_window: int) -> None:
    features = np.random.default_rng(3).standard_normal((8, sum(lengths))).astype(np.float32)
    reference = model.chunk_and_pad_features(torch.from_numpy(features), torch.tensor(lengths), n_window)
    same(audio.chunk_and_pad_features(features, np.array(lengths), n_window), reference)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_segments_and_indices_of_one_convolution_equal_qwen2_5_omni(lengths: list[int]) -> None:
    chunks = audio.chunk_lengths(np.array(lengths), 100)
    tensor = torch.from_numpy(chunks)
    same(audio.audio_cu_seqlens(chunks), qwen2_5_omni.get_audio_cu_seqlens(tensor))
    same(audio.valid_indices(chunks), qwen2_5_omni.get_valid_indices(tensor))


@pytest.mark.parametrize("lengths", [[37], [200, 201, 202, 203], [5, 6, 7, 8, 999], [3000, 57]])
def test_pooled_pairs_equal_qwen2_5_omni(lengths: list[int]) -> None:
    same(audio.pool_indices(np.array(lengths)), qwen2_5_omni.get_pool_indices(torch.tensor(lengths)))


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("infer", [100, 400, 800])
def test_segments_of_inference_windows_equal_transformers(lengths: list[int], infer: int) -> None:
    chunks = audio.chunk_lengths(np.array(lengths), 50)
    ours = audio.audio_cu_seqlens(chunks, np.array(lengths), n_window_infer=infer, n_window=50)
    for model in (qwen3_omni_moe, qwen3_asr):
        tensors = (torch.from_numpy(chunks), torch.tensor(lengths))
        same(ours, model.get_audio_cu_seqlens(*tensors, n_window_infer=infer, n_window=50))


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("n_window", [50, 32])
def test_indices_after_three_convolutions_equal_qwen3_omni(lengths: list[int], n_window: int) -> None:
    chunks = audio.chunk_lengths(np.array(lengths), n_window)
    same(audio.valid_indices(chunks, n_window), qwen3_omni_moe.get_valid_indices(torch.from_numpy(chunks), n_window))
