"""The one piece of work every peer does: the model's dimensions, the request, where its files lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

THREADS = 2
PROMPT_TOKENS = 94
IMAGE_TOKENS = 64
NEW_TOKENS = 64
ROUNDS = 3  # every peer has its turn in each: what else the machine does then falls on all of them
RUNS = 2  # in a round
WARM_UPS = 1
SEED = 20260
PICTURE_PX = 512
QUESTION = "What colour is the paper?"  # one byte a token: with the picture and two markers, 94 tokens

PREFILL_AND_VISION_FASTER = 2.2
TPOT_FASTER = 2.7
TPOT_OF_LLAMA = 1.1
PREFILL_OF_LLAMA = 1.0
EXPORT_S = 60.0
RSS_OF_WEIGHTS = 1.6
NOOP_S = 1.5
IMPORT_S = 0.150


@dataclass(frozen=True)
class Layout:
    """The files of one benchmark folder."""

    root: Path

    @property
    def checkpoint(self) -> Path:
        """A folder as `save_pretrained` leaves it."""
        return self.root / "checkpoint"

    @property
    def picture(self) -> Path:
        """The request's picture."""
        return self.root / "picture.png"

    @property
    def inputs(self) -> Path:
        """`input_ids` [1, 94] and `pixel_values` [1, 1, 3, 512, 512]: what the processor makes of the request."""
        return self.root / "inputs.npz"

    @property
    def reference(self) -> Path:
        """What the original model gives: `inputs_embeds` [94, 576], `logits` [64, vocabulary], `token_ids` [64]."""
        return self.root / "reference.npz"

    @property
    def recipe(self) -> Path:
        """The recipe of the build that is timed."""
        return self.root / "standard.toml"

    @property
    def portable_recipe(self) -> Path:
        """The same model in the portable dialect, for the plain ONNX Runtime peer."""
        return self.root / "portable.toml"

    @property
    def gguf(self) -> Path:
        """The decoder's weights for llama.cpp."""
        return self.root / "decoder-f32.gguf"

    @property
    def store(self) -> Path:
        """The store of the timed build."""
        return self.root / "store"

    @property
    def deployment(self) -> Path:
        """What the timed build leaves."""
        return self.root / "deployments" / "standard"

    @property
    def portable_deployment(self) -> Path:
        """What the build in the portable dialect leaves."""
        return self.root / "deployments" / "portable"
