"""The floor: the request's multiply-adds at the fastest fp32 matrix product here, its weights at the fastest reading.

No library is a peer below this line; it says how far a bar on this machine can be from what can be had at all.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from tests.bench.timing import Times, clocked
from tests.bench.work import IMAGE_TOKENS, PROMPT_TOKENS, THREADS, Layout

TRIES = 30
PRODUCTS = ((1024, 768, 768), (1024, 768, 3072), (94, 1536, 576), (2048, 2048, 2048))  # rows, in, out
READ = (1, 4096, 32768)  # half a gibibyte of weights for one row: nothing but reading


def best_ms(rows: int, width: int, columns: int) -> float:
    """The fastest of many products [rows, width] x [width, columns] with a constant second factor."""
    weight = np.full((width, columns), 0.5, np.float32)
    sizes = {"x": (rows, width), "y": (rows, columns)}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in sizes.items()}
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "product", [values["x"]], [values["y"]], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"x": np.ones((rows, width), np.float32)}
    return min(clocked(session.run, None, feed)[1] for _ in range(TRIES))


def vision_operations(config: dict[str, Any]) -> int:
    """Multiplications and additions of one picture."""
    vision, text = config["vision_config"], config["text_config"]
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    tokens = (vision["image_size"] // patch) ** 2
    layer = 2 * tokens * (4 * width**2 + 2 * width * inner) + 4 * tokens**2 * width
    connector = 2 * IMAGE_TOKENS * (width * tokens // IMAGE_TOKENS) * text["hidden_size"]
    layers: int = vision["num_hidden_layers"]
    return layers * layer + 2 * tokens * 3 * patch**2 * width + connector


def layer_weights(text: dict[str, Any]) -> int:
    """Weights of one decoder layer's products."""
    width, size = text["hidden_size"], text["head_dim"]
    attention = 2 * width * size * (text["num_attention_heads"] + text["num_key_value_heads"])
    return int(attention + 3 * width * text["intermediate_size"])


def prefill_operations(text: dict[str, Any]) -> int:
    """Multiplications and additions of the prompt; a token attends to those before it, the last one has logits."""
    attention = 2 * PROMPT_TOKENS**2 * text["num_attention_heads"] * text["head_dim"]
    layer = 2 * PROMPT_TOKENS * layer_weights(text) + attention
    return int(text["num_hidden_layers"] * layer + 2 * text["hidden_size"] * text["vocab_size"])


def measure(layout: Layout) -> Times:
    """The floor of each phase, in ms."""
    config = json.loads((layout.checkpoint / "config.json").read_text())
    text = config["text_config"]
    rate = max(2 * rows * width * columns / best_ms(rows, width, columns) for rows, width, columns in PRODUCTS)
    reading = READ[1] * READ[2] * 4 / best_ms(*READ)
    weights = text["num_hidden_layers"] * layer_weights(text) + text["hidden_size"] * text["vocab_size"]
    return Times(
        name="floor of this machine",
        versions={},
        vision_ms=(vision_operations(config) / rate,),
        prefill_ms=(prefill_operations(text) / rate,),
        tpot_ms=(4 * weights / reading,),
        token_ids=(),
        checks={
            "fastest fp32 matrix product, GFLOP/s": rate / 1e6,
            "fastest reading of weights, GB/s": reading / 1e6,
            "vision, GFLOP": vision_operations(config) / 1e9,
            "prefill, GFLOP": prefill_operations(text) / 1e9,
            "weights read for a token, MB": 4 * weights / 1e6,
        },
    )


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("runs", type=int, help="not used: the fastest of many is the floor")
    measure(Layout(arguments.parse_args().folder)).hand_back()
