"""Greedy answers of one model, through the same processor and chat template that everyone uses."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from calibration.shapes.dataset import Sample

BATCH = 60
MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class Answer:
    """What a model said: its tokens with the end token, the text, and the geometric mean of token probabilities."""

    tokens: tuple[int, ...]
    text: str
    confidence: float


class Answerer:
    """A model with its processor, ready to answer."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        self.model.eval()
        self.processor: Any = AutoProcessor.from_pretrained(folder)

    def prompts(self, rows: Sequence[Sample], flat: Image.Image | None) -> dict[str, torch.Tensor]:
        """Model inputs for the rows, padded on the left; `flat` takes the place of every picture."""
        texts = [
            self.processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row.question}]}],
                add_generation_prompt=True,
                tokenize=False,
            )
            for row in rows
        ]
        images = [[row.image if flat is None else flat] for row in rows]
        inputs = self.processor(text=texts, images=images, padding=True, return_tensors="pt")
        return {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values", "pixel_attention_mask")}

    @torch.no_grad()
    def answer(self, rows: Sequence[Sample], flat: Image.Image | None = None) -> list[Answer]:
        """Greedy answers to the rows, in their order."""
        answers: list[Answer] = []
        for batch in batches(rows):
            inputs = self.prompts(batch, flat)
            said = self.model.generate(
                **inputs,
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
            tokens = said.sequences[:, inputs["input_ids"].shape[1] :].tolist()
            certain = torch.stack([step.log_softmax(-1).max(-1).values for step in said.logits], 1).tolist()
            answers += [self._answer(row, sure) for row, sure in zip(tokens, certain, strict=True)]
        return answers

    def _answer(self, tokens: list[int], log_probabilities: list[float]) -> Answer:
        end = self.processor.tokenizer.eos_token_id
        length = tokens.index(end) + 1 if end in tokens else len(tokens)
        text = self.processor.tokenizer.decode(tokens[:length], skip_special_tokens=True).strip()
        mean = torch.tensor(log_probabilities[:length]).mean().exp().item()
        return Answer(tuple(tokens[:length]), text, mean)


def batches(rows: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    """Runs of rows that fit in memory together."""
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]
