"""The torch original of a checkpoint, and what it answers to requests of every modality in several sizes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.utils import _pytree as pytree
from transformers import GenerationConfig

from msao_compile.errors import UnsupportedFamily
from msao_compile.families.examples import medium, modalities, request
from msao_compile.families.light import light
from msao_compile.families.registry import open_checked
from msao_compile.families.side_files import start_token
from msao_compile.families.subject import decoded
from msao_compile.manifest.schema import ENCODERS


@dataclass(frozen=True)
class Asked:
    """One request as named inputs, its modalities, which size of them (`variant`), and what the torch model answers.

    `outputs` are those of one pass, `teacher` the tokens that it is then made to decode, `steps` [steps + 1,
    vocabulary] the logits before each of them and after the last. `prompt` is what the steps go on from: `inputs`, or
    what the model's own `generate` made of them.
    """

    modalities: tuple[str, ...]
    variant: int
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    features: dict[str, np.ndarray]
    prompt: dict[str, np.ndarray]
    teacher: np.ndarray
    steps: np.ndarray


class Original:
    """The torch model, eager fp32, and its answers to requests of several sizes: each is computed once."""

    def __init__(self, folder: Path, exclude: tuple[str, ...], steps: int, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        skeleton = open_checked(folder, trusted=True)  # the pipeline has refused what may not be opened
        kind, config = type(skeleton), skeleton.config
        self.model = kind.from_pretrained(
            folder, config=config, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.start = start_token(folder, config) if config.is_encoder_decoder else None
        known = [name for name in modalities(self.model) if ENCODERS[name] not in exclude]
        self.steps = steps
        self.asked = list(self._requests(known))
        self._twins: dict[tuple[tuple[str, ...], int], Asked] = {}

    def _requests(self, known: list[Any]) -> Iterator[Asked]:
        for modality in known:
            for variant in range(3):
                yield self._answered((modality,), variant, np.random.default_rng(variant))
        with contextlib.suppress(UnsupportedFamily):  # it answers nothing without a picture or a sound
            yield self._answered((), 0, np.random.default_rng(9))

    def answers(self, modality: str, variant: int, inputs: dict[str, np.ndarray]) -> Asked:
        """What it answers to a given request about one picture, clip or sound."""
        with _features_of(self.model) as features:
            return self._asked((modality,), variant, inputs, features)

    def twin(self, asked: Asked) -> Asked:
        """Another request of the same sizes."""
        kind = (asked.modalities, asked.variant)
        if kind not in self._twins:
            self._twins[kind] = self._answered(*kind, np.random.default_rng(99))
        return self._twins[kind]

    def _answered(self, modalities: tuple[Any, ...], variant: int, chance: np.random.Generator) -> Asked:
        with light(self.model):  # an example that runs is looked for; what it gives is computed once, below
            media = [medium(self.model, modality, variant, chance) for modality in modalities]
        inputs = request(self.model, media, 6 if media else self.prompt_tokens, chance)
        with _features_of(self.model) as features:
            return self._asked(modalities, variant, inputs, features)

    def _asked(
        self,
        modalities: tuple[str, ...],
        variant: int,
        inputs: dict[str, np.ndarray],
        features: Mapping[str, Features],
    ) -> Asked:
        found = self.model(**_torch(inputs))
        if decoded(self.model) is None:
            outputs = {name: value.numpy() for name, value in found.items() if hasattr(value, "numpy")}
            nothing = np.zeros((0, 0), np.float32)
            return Asked(modalities, variant, inputs, outputs, {}, {}, np.zeros(0, np.int64), nothing)
        logits = found.logits.numpy()
        teacher = np.random.default_rng(len(modalities)).integers(10, min(200, logits.shape[-1]), self.steps)
        prompt, taken, stepped = self._stepped(inputs, teacher)
        own = {
            f"{name}_features": np.concatenate(held.rows)
            for name, held in features.items() if name in modalities and held.rows
        }  # fmt: skip
        return Asked(modalities, variant, inputs, {"logits": logits}, own, prompt, taken, stepped)

    def _stepped(
        self, inputs: dict[str, np.ndarray], teacher: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """What `generate` read, the tokens that it took, the teacher's unless the model's settings forbid one, and its
        logits.
        """
        prefixes: list[Any] = []

        def allowed(_: int, prefix: Any) -> list[int]:
            """Asked of the prefix: some models' own `generate` forgets a processor of logits."""
            prefixes.append(prefix)
            return [int(token) for token in teacher[len(prefixes) - 1 : len(prefixes)]] or [0]

        tensors = {name: value.clone() for name, value in _torch(inputs).items() if name != "decoder_input_ids"}
        settings = GenerationConfig(
            max_new_tokens=len(teacher) + 1, do_sample=False, eos_token_id=None, pad_token_id=0,
            output_logits=True, return_dict_in_generate=True,
            decoder_start_token_id=self.start,
        )  # fmt: skip
        found = self.model.generate(**tensors, generation_config=settings, prefix_allowed_tokens_fn=allowed)
        taken = prefixes[-1][len(prefixes[-1]) - len(teacher) :].numpy()
        prompt = dict(inputs)
        read = prefixes[0][None].numpy()
        if not self.model.config.is_encoder_decoder and 0 < read.shape[1] < inputs["input_ids"].shape[1]:
            prompt = {**prompt, "input_ids": read, "attention_mask": np.ones_like(read)}  # it read a part of the prompt
        return prompt, taken, np.stack([step[0].float().numpy() for step in found.logits])


@dataclass
class Features:
    """What the feature methods of one modality gave: [rows, width] of the outermost, and by what they were asked."""

    rows: list[np.ndarray] = field(default_factory=list)
    known: list[tuple[list[torch.Tensor], Any]] = field(default_factory=list)

    def of(self, method: Any) -> Any:
        """The method, noted; `generate` looks at the names of what it takes.

        Of a method that calls its like in a part of the model, what the outer one gives counts.

        `generate` asks again for what the pass before it has computed from the same pictures: it gets that.
        """

        @functools.wraps(method)
        def noted(*args: Any, **named: Any) -> Any:
            asked = [leaf for leaf in pytree.tree_leaves((args, named)) if isinstance(leaf, torch.Tensor)]
            for before, given in self.known:
                if len(before) == len(asked) and all(map(torch.equal, before, asked)):
                    return given
            count = len(self.rows)
            given = method(*args, **named)
            pooled = getattr(given, "pooler_output", given)
            parts = pooled if isinstance(pooled, list | tuple) else [pooled]
            if all(hasattr(part, "shape") for part in parts):
                self.rows[count:] = [part.reshape(-1, part.shape[-1]).numpy() for part in parts]
            self.known.append((asked, given))
            return given

        return noted


@contextlib.contextmanager
def _features_of(model: Any) -> Iterator[dict[str, Features]]:
    """Fills with what the model's own feature methods give inside this block, by modality."""
    found = {modality: Features() for modality in ENCODERS}
    with contextlib.ExitStack() as stack:
        for part in model.modules():
            for modality, features in found.items():
                method = getattr(part, f"get_{modality}_features", None)
                if method is not None:
                    stack.enter_context(patch.object(part, method.__name__, features.of(method)))
        yield found


def _torch(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}
