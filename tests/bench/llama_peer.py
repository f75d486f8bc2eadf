"""Peer: llama.cpp f32 through llama-cpp-python's low-level calls, in a virtual environment of its own.

Legend: T tokens of one batch, H hidden size, V vocabulary.
"""

from __future__ import annotations

import argparse
import ctypes
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llama_cpp  # type: ignore[import-not-found]
import numpy as np

from tests.bench import llama_weights
from tests.bench.timing import Times, clocked
from tests.bench.work import NEW_TOKENS, PROMPT_TOKENS, THREADS, WARM_UPS, Layout

Array = np.ndarray[Any, np.dtype[Any]]
CONTEXT_TOKENS = 512
GGML_TYPE_F32 = 0


class Llama:
    """One model and one context; all calls go straight to llama.h."""

    def __init__(self, path: Path, flash: bool) -> None:
        llama_cpp.llama_backend_init()
        self.quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = CONTEXT_TOKENS
        options.n_threads = options.n_threads_batch = THREADS
        options.type_k = options.type_v = GGML_TYPE_F32
        options.flash_attn_type = int(flash)
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def forget(self) -> None:
        """Empty the KV cache."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def prefill(self, embeds_TH: Array) -> Array:
        """Logits [V] after the last row of one batch of embeddings: the picture's features are among them."""
        tokens, hidden = embeds_TH.shape
        batch = llama_cpp.llama_batch_init(tokens, hidden, 1)
        ctypes.memmove(batch.embd, np.ascontiguousarray(embeds_TH).ctypes.data, embeds_TH.nbytes)
        return self._logits(batch, tokens, 0)

    def decode(self, token: int, position: int) -> Array:
        """Logits [V] after one token."""
        batch = llama_cpp.llama_batch_init(1, 0, 1)
        batch.token[0] = token
        return self._logits(batch, 1, position)

    def _logits(self, batch: Any, tokens: int, position: int) -> Array:
        batch.n_tokens = tokens
        for index in range(tokens):
            batch.pos[index] = position + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = index == tokens - 1
        status = llama_cpp.llama_decode(self.context, batch)
        llama_cpp.llama_batch_free(batch)
        if status != 0:
            raise RuntimeError(f"llama_decode gave {status}")
        pointer = llama_cpp.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(pointer, shape=(self.vocabulary,))

    def answer(self, logits_V: Array, keep: list[Array] | None) -> list[int]:
        """Greedy tokens, the first from the prefill's logits; `keep` collects a copy of every logits row."""
        tokens: list[int] = []
        while True:
            tokens.append(int(logits_V.argmax()))
            if keep is not None:
                keep.append(logits_V.copy())
            if len(tokens) == NEW_TOKENS:
                return tokens
            logits_V = self.decode(tokens[-1], PROMPT_TOKENS + len(tokens) - 1)


def measure(layout: Layout, runs: int, flash: bool) -> Times:
    """Compare one whole answer with the reference, then time `runs` after a warm-up."""
    if not layout.gguf.is_file():
        partial = layout.gguf.with_suffix(".partial")
        llama_weights.write(layout.checkpoint, partial)
        partial.rename(layout.gguf)
    reference = np.load(layout.reference)
    embeds = reference["inputs_embeds"]
    peer = Llama(layout.gguf, flash)
    rows: list[Array] = []
    tokens = peer.answer(peer.prefill(embeds), rows)
    differ = np.flatnonzero(np.asarray(tokens) != reference["token_ids"])
    same = int(differ[0]) if differ.size else NEW_TOKENS
    prefill_ms, tpot_ms = [], []
    for _ in range(WARM_UPS + runs):
        peer.forget()
        logits, prefill = clocked(peer.prefill, embeds)
        _, decode = clocked(peer.answer, logits, None)
        prefill_ms.append(prefill)
        tpot_ms.append(decode / (NEW_TOKENS - 1))
    return Times(
        name="llama.cpp f32, flash attention" if flash else "llama.cpp f32",
        versions={"llama-cpp-python": version("llama-cpp-python"), "gguf": version("gguf")},
        prefill_ms=tuple(prefill_ms[WARM_UPS:]),
        tpot_ms=tuple(tpot_ms[WARM_UPS:]),
        token_ids=tuple(tokens),
        checks={
            "first tokens equal to the reference": float(same),
            "largest logit difference over them": float(np.abs(np.stack(rows) - reference["logits"])[:same].max()),
            "system": llama_cpp.llama_print_system_info().decode().strip(),
        },
    )


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("runs", type=int)
    arguments.add_argument("--flash", action="store_true")
    chosen = arguments.parse_args()
    measure(Layout(chosen.folder), chosen.runs, chosen.flash).hand_back()
