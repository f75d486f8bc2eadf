"""Peer: Hugging Face eager attention, fp32. Its answer is the reference for every other peer."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import SmolVLMForConditionalGeneration

from tests.bench.timing import Times, clocked
from tests.bench.work import NEW_TOKENS, THREADS, WARM_UPS, Layout


class Eager:
    """One request on the original model, step by step."""

    def __init__(self, layout: Layout) -> None:
        inputs = np.load(layout.inputs)
        self.input_ids = torch.from_numpy(inputs["input_ids"])
        self.pixel_values = torch.from_numpy(inputs["pixel_values"])
        self.model = SmolVLMForConditionalGeneration.from_pretrained(
            layout.checkpoint, dtype=torch.float32, attn_implementation="eager"
        )

    def vision(self) -> torch.Tensor:
        """Image features [64, 576]."""
        features: torch.Tensor = self.model.get_image_features(self.pixel_values).pooler_output[0]
        return features

    def merged(self, features: torch.Tensor) -> torch.Tensor:
        """Prompt embeddings [1, 94, 576] with the features in their places."""
        embeds: torch.Tensor = self.model.model.text_model.embed_tokens(self.input_ids).clone()
        embeds[self.input_ids == self.model.config.image_token_id] = features
        return embeds

    def prefill(self, features: torch.Tensor) -> Any:
        """The output for the last position of the prompt."""
        return self.model(inputs_embeds=self.merged(features), use_cache=True, logits_to_keep=1)

    def decode(self, output: Any) -> list[torch.Tensor]:
        """Greedy: the logits [vocabulary] of each of the new tokens."""
        logits = [output.logits[0, -1]]
        while len(logits) < NEW_TOKENS:
            token = logits[-1].argmax().reshape(1, 1)
            output = self.model(
                input_ids=token, past_key_values=output.past_key_values, use_cache=True, logits_to_keep=1
            )
            logits.append(output.logits[0, -1])
        return logits


def measure(layout: Layout, runs: int) -> Times:
    """Time `runs` requests after a warm-up and write the reference."""
    peer = Eager(layout)
    vision_ms, prefill_ms, tpot_ms = [], [], []
    for _ in range(WARM_UPS + runs):
        features, vision = clocked(peer.vision)
        output, prefill = clocked(peer.prefill, features)
        logits, decode = clocked(peer.decode, output)
        vision_ms.append(vision)
        prefill_ms.append(prefill)
        tpot_ms.append(decode / (NEW_TOKENS - 1))
    table = torch.stack(logits)
    tokens = table.argmax(-1)
    top = table.topk(2, -1).values
    embeds = peer.merged(features)[0].numpy()
    np.savez(layout.reference, inputs_embeds=embeds, logits=table.numpy(), token_ids=tokens.numpy())
    return Times(
        name="Hugging Face eager fp32",
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
        vision_ms=tuple(vision_ms[WARM_UPS:]),
        prefill_ms=tuple(prefill_ms[WARM_UPS:]),
        tpot_ms=tuple(tpot_ms[WARM_UPS:]),
        token_ids=tuple(tokens.tolist()),
        checks={
            "logits finite": bool(torch.isfinite(table).all()),
            "different tokens": float(len(set(tokens.tolist()))),
            "smallest gap between first and second logit": float((top[:, 0] - top[:, 1]).min()),
        },
    )


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("runs", type=int)
    chosen = arguments.parse_args()
    torch.set_num_threads(THREADS)
    with torch.inference_mode():
        measure(Layout(chosen.folder), chosen.runs).hand_back()
