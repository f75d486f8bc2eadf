"""What `gpu_runner` tries runners on: graphs, orders, inputs, and what ONNX Runtime gives for them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from msao_compile.runtime.backends import trt

# How many positions each step appends, and how many are kept of what is held then.
SCRIPT = ((5, 5), (1, 6), (1, 7), (1, 8), (3, 9), (1, 10), (1, 11), (1, 3), (3, 6), (1, 2), (2, 2), (1, 3), (1, 4))
CAPACITY, HEADS, WIDTH, HIDDEN = 16, 2, 8, 16
BOUNDS = {"float": 1e-3, "float16": 2e-2}  # fp32 products may run as TF32
DECODERS = [(dialect, kind) for dialect in ("portable", "scatter") for kind in ("float", "float16")]


def make(folder: Path) -> None:
    """Write graphs, orders, inputs and what ONNX Runtime gives for them."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "runtime" / "backends"))
    import trt_graphs as graphs

    folder.mkdir(parents=True, exist_ok=True)
    graphs.write_encoder(folder)
    orders = {"encoder": graphs.order([graphs.encoder_profile()], ())}
    for dialect, kind in DECODERS:
        graphs.write_decoder(folder, dialect, kind)
        orders[f"decoder.{dialect}.{kind}"] = graphs.order(graphs.decoder_profiles(dialect), ())
    (folder / "orders.json").write_text(json.dumps(orders, indent=1))
    for kind in BOUNDS:
        np.savez(folder / f"steps.{kind}.npz", **expected(folder, kind))


def expected(folder: Path, kind: str) -> dict[str, np.ndarray]:
    """Inputs and logits of `SCRIPT` for a batch of 2, by ONNX Runtime from the portable graph."""
    import onnxruntime as ort

    session = ort.InferenceSession(folder / f"decoder.portable.{kind}.onnx", providers=["CPUExecutionProvider"])
    rng, found = np.random.default_rng(0), {}
    past = [np.zeros((2, HEADS, 0, WIDTH), {"float": np.float32, "float16": np.float16}[kind])] * 2
    for index, (count, kept) in enumerate(SCRIPT):
        embeds = rng.standard_normal((2, count, HIDDEN)).astype(np.float32)
        fed = {**arrays(embeds, past[0].shape[2]), "past_key_values.0.key": past[0], "past_key_values.0.value": past[1]}
        logits, *past = session.run(["logits", "present.0.key", "present.0.value"], fed)
        past = [np.ascontiguousarray(value[:, :, :kept]) for value in past]
        found |= {f"embeds.{index}": embeds, f"logits.{index}": logits}
    return found


def arrays(embeds: np.ndarray, held: int) -> dict[str, np.ndarray]:
    """A step's inputs after `held` positions."""
    batch, count = embeds.shape[:2]
    return {
        "inputs_embeds": embeds,
        "attention_mask": np.ones((batch, held + count), np.int64),
        "position_ids": np.tile(np.arange(held, held + count), (batch, 1)),
        "logits_positions": np.arange(count),
    }


def states(dialect: str) -> tuple[Any, ...]:
    grows, update = (CAPACITY, "in_place") if dialect == "scatter" else (trt.GROWS, "concat")
    return tuple(
        SimpleNamespace(
            name=f"past_key_values.0.{part}", output=f"present.0.{part}", update=update, rollback=True,
            shape=("batch_size", HEADS, grows, WIDTH),
        )
        for part in ("key", "value")
    )  # fmt: skip
