"""This project: one request through the public runtime API, from the picture's file to the last token."""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path

from msao_compile.runtime import load
from tests.bench.timing import Times
from tests.bench.work import NEW_TOKENS, QUESTION, WARM_UPS, Layout


def measure(layout: Layout, runs: int) -> Times:
    """Time `runs` answers after a warm-up; the runtime's `modules_ms` covers the time to the first token."""
    runtime = load(layout.deployment)
    vision_ms, prefill_ms, ttft_ms, tpot_ms = [], [], [], []
    for _ in range(WARM_UPS + runs):
        answer = runtime.generate(QUESTION, image=str(layout.picture), max_new_tokens=NEW_TOKENS, temperature=0.0)
        modules = answer.timing.modules_ms
        vision_ms.append(modules["vision_encoder"])
        prefill_ms.append(modules["embed_tokens"] + modules["decoder"])
        ttft_ms.append(answer.timing.ttft_ms)
        tpot_ms.append(answer.timing.tpot_ms)
    return Times(
        name="msao-compile fp32",
        versions={"onnxruntime": version("onnxruntime"), "numpy": version("numpy")},
        vision_ms=tuple(vision_ms[WARM_UPS:]),
        prefill_ms=tuple(prefill_ms[WARM_UPS:]),
        ttft_ms=tuple(ttft_ms[WARM_UPS:]),
        tpot_ms=tuple(tpot_ms[WARM_UPS:]),
        token_ids=tuple(int(token) for token in answer.token_ids),
        checks={"route": str(answer.route)},
    )


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("runs", type=int)
    chosen = arguments.parse_args()
    measure(Layout(chosen.folder), chosen.runs).hand_back()
