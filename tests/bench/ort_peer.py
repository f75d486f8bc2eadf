"""Peer: plain ONNX Runtime on the portable graphs, `session.run` with concatenated KV: the loop most people write."""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from tests.bench.timing import Times, clocked
from tests.bench.work import NEW_TOKENS, PROMPT_TOKENS, THREADS, WARM_UPS, Layout

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]


def open_graph(folder: Path, component: str) -> Any:
    """An inference session of one component of a deployment."""
    manifest = json.loads((folder / "deployment.json").read_text())
    module = next(entry for entry in manifest["modules"] if entry["component"] == component)
    graph = next(entry for entry in module["graphs"] if entry["dialect"] == "portable")
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    return ort.InferenceSession(folder / graph["file"]["path"], options, providers=["CPUExecutionProvider"])


class Plain:
    """One request on three sessions."""

    def __init__(self, layout: Layout) -> None:
        inputs = np.load(layout.inputs)
        config = json.loads((layout.checkpoint / "config.json").read_text())
        text = config["text_config"]
        self.input_ids = inputs["input_ids"]
        pixels = inputs["pixel_values"]
        mask = np.ones((*pixels.shape[:2], *pixels.shape[3:]), bool)
        self.encoder_feed = {"pixel_values": pixels, "pixel_attention_mask": mask}
        self.width = text["hidden_size"]
        self.kv_shape = (1, text["num_key_value_heads"], 0, text["head_dim"])
        folder = layout.portable_deployment
        self.encoder, self.embed, self.decoder = (
            open_graph(folder, component) for component in ("vision_encoder", "embed_tokens", "decoder")
        )
        self.presents = [output.name for output in self.decoder.get_outputs()[1:]]

    def vision(self) -> Any:
        """Image features [64, 576]."""
        return self.encoder.run(["image_features"], self.encoder_feed)[0]

    def prefill(self, features: Any) -> tuple[Any, Arrays]:
        """Logits after the prompt, and the KV cache."""
        embeds = self._embed(self.input_ids, features)
        empty = np.zeros(self.kv_shape, np.float32)
        past = {name.replace("present", "past_key_values"): empty for name in self.presents}
        return self._step(embeds, past, 0)

    def decode(self, logits: Any, past: Arrays) -> list[int]:
        """Greedy tokens."""
        tokens = [int(logits.argmax())]
        while len(tokens) < NEW_TOKENS:
            embeds = self._embed(np.asarray([[tokens[-1]]]), np.zeros((0, self.width), np.float32))
            logits, past = self._step(embeds, past, PROMPT_TOKENS + len(tokens) - 1)
            tokens.append(int(logits.argmax()))
        return tokens

    def _embed(self, ids: Any, features: Any) -> Any:
        return self.embed.run(["inputs_embeds"], {"input_ids": ids, "image_features": features})[0]

    def _step(self, embeds: Any, past: Arrays, start: int) -> tuple[Any, Arrays]:
        count = embeds.shape[1]
        feed = {
            "inputs_embeds": embeds,
            "attention_mask": np.ones((1, start + count), np.int64),
            "position_ids": np.arange(start, start + count)[None],
            "logits_positions": np.asarray([count - 1]),
        }
        logits, *presents = self.decoder.run(["logits", *self.presents], feed | past)
        names = (name.replace("present", "past_key_values") for name in self.presents)
        return logits[0, -1], dict(zip(names, presents, strict=True))


def measure(layout: Layout, runs: int) -> Times:
    """Time `runs` requests after a warm-up."""
    peer = Plain(layout)
    vision_ms, prefill_ms, tpot_ms = [], [], []
    for _ in range(WARM_UPS + runs):
        features, vision = clocked(peer.vision)
        prompt, prefill = clocked(peer.prefill, features)
        tokens, decode = clocked(peer.decode, *prompt)
        vision_ms.append(vision)
        prefill_ms.append(prefill)
        tpot_ms.append(decode / (NEW_TOKENS - 1))
    return Times(
        name="ONNX Runtime fp32, plain run",
        versions={"onnxruntime": version("onnxruntime")},
        vision_ms=tuple(vision_ms[WARM_UPS:]),
        prefill_ms=tuple(prefill_ms[WARM_UPS:]),
        tpot_ms=tuple(tpot_ms[WARM_UPS:]),
        token_ids=tuple(tokens),
    )


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("runs", type=int)
    chosen = arguments.parse_args()
    measure(Layout(chosen.folder), chosen.runs).hand_back()
