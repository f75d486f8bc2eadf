"""Peer: the original model in torch, eager in fp32 (the reference) or fp16, or compiled with a static cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from transformers import SmolVLMForConditionalGeneration, StaticCache

from tests.bench.gpu.asking import measure
from tests.bench.gpu.work import CAPACITY, Result, Work, parser, say, work_of

TYPES = {"fp32": torch.float32, "fp16": torch.float16}


class TorchPeer:
    """One request, or a batch of equal ones; tokens stay on the device until all are there."""

    def __init__(self, work: Work, precision: str, attention: str, compiled: bool) -> None:
        self.device, inputs = torch.device(work.device), np.load(work.layout.inputs)
        self.model = SmolVLMForConditionalGeneration.from_pretrained(
            work.layout.checkpoint, dtype=TYPES[precision], attn_implementation=attention
        ).to(self.device)  # type: ignore[arg-type]
        self.model.eval()
        self.ids, self.pixels = (torch.from_numpy(inputs[name]) for name in ("input_ids", "pixel_values"))
        self.compiled = compiled
        self.advance: Any = (
            torch.compile(self._advance, mode="reduce-overhead", dynamic=False) if compiled else self._advance
        )
        self.caches: dict[int, Any] = {}
        self.cache: Any = None
        self.known = 0

    def start(self, batch: int) -> torch.Tensor:
        """Encode, embed, prefill; the prompt is never compiled, as in transformers' own `generate`."""
        ids = self.ids.expand(batch, -1).to(self.device)
        pixels = self.pixels.expand(batch, -1, -1, -1, -1).to(self.device, self.model.dtype)
        features = self.features(pixels)
        embeds = self.model.model.text_model.embed_tokens(ids).clone()
        embeds[ids == self.model.config.image_token_id] = features
        self.cache, self.known = self._empty(batch), ids.shape[1]
        output = self.model(inputs_embeds=embeds, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = output.past_key_values
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Image features, all pictures' rows one after another."""
        return torch.cat(list(self.model.get_image_features(pixels).pooler_output))

    def _empty(self, batch: int) -> Any:
        """One static cache a batch size, so that its addresses stay; torch's own growing one where not compiled."""
        if not self.compiled:
            return None
        if batch in self.caches:
            self.caches[batch].reset()
        else:
            self.caches[batch] = StaticCache(config=self.model.config.text_config, max_cache_len=CAPACITY)
        return self.caches[batch]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Decode."""
        places = torch.full((len(tokens), 1), self.known, device=self.device)
        self.known += 1
        if self.compiled:
            torch.compiler.cudagraph_mark_step_begin()
        logits: torch.Tensor = self.advance(tokens[:, None], places, self.cache)
        return logits.clone() if self.compiled else logits  # of a graph, the next step overwrites them

    def _advance(self, ids: torch.Tensor, places: torch.Tensor, cache: Any) -> torch.Tensor:
        text = self.model.model.text_model(input_ids=ids, position_ids=places, past_key_values=cache, use_cache=True)
        logits: torch.Tensor = self.model.lm_head(text.last_hidden_state[:, -1])
        return logits

    def pick(self, logits: torch.Tensor) -> torch.Tensor:
        """On the device."""
        return logits.argmax(-1)

    def tokens(self, numbers: list[int]) -> torch.Tensor:
        """On the device."""
        return torch.tensor(numbers, device=self.device)

    def host(self, logits: torch.Tensor) -> np.ndarray:
        """Copied."""
        found: np.ndarray = logits.float().cpu().numpy()
        return found

    def wait(self) -> None:
        """For the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def save_reference(peer: TorchPeer, work: Work) -> None:
    """The picture's features, and greedy logits and tokens of one request."""
    pixels = peer.pixels.to(peer.device, peer.model.dtype)
    np.savez(work.features, image_features=peer.host(peer.features(pixels)))
    logits = [peer.start(1)]
    while len(logits) < work.new_tokens:
        logits.append(peer.step(peer.pick(logits[-1])))
    table = np.concatenate([peer.host(one) for one in logits])
    np.savez(work.reference, logits=table, token_ids=table.argmax(-1))
    say(f"reference: {len(set(table.argmax(-1).tolist()))} different tokens, finite {bool(np.isfinite(table).all())}")


def main() -> None:
    """Measure one way of running torch."""
    made = parser(__doc__)
    made.add_argument("--precision", choices=tuple(TYPES), required=True)
    made.add_argument("--attention", default="sdpa")
    made.add_argument("--compile", action="store_true")
    made.add_argument("--reference", action="store_true", help="write the reference and time nothing")
    chosen = made.parse_args()
    work = work_of(chosen)
    # fp32 is fp32: no products in TF32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    name = "torch.compile, static cache" if chosen.compile else f"torch eager, {chosen.attention}"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    result = Result(chosen.out, peer=name, precision=chosen.precision, versions=versions)
    # `generate` compiles under no_grad; tensors of inference mode cannot all be captured
    with torch.no_grad() if chosen.compile else torch.inference_mode():
        peer = TorchPeer(work, chosen.precision, chosen.attention, chosen.compile)
        say(f"{name} loaded")
        if chosen.reference:
            save_reference(peer, work)
            result.add(steps=work.new_tokens)
        else:
            measure(peer, work, result)
            if work.device == "cuda":
                result.add(peak_allocated_bytes=torch.cuda.max_memory_allocated())


if __name__ == "__main__":
    main()
