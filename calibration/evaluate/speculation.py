"""Greedy speculation between two models: how many drafted tokens the verifier accepts.

Under greedy verification every accepted prefix is the verifier's own greedy path, so the draft model's choices along
that path (one forward pass with the verifier's answer as input) decide everything: no loop has to be run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from calibration.evaluate.answers import Answer, Answerer, batches
from calibration.shapes.dataset import Sample

GAMMA = 4


@dataclass(frozen=True)
class Tally:
    """Counts over answers: tokens drafted, drafted tokens accepted, verify passes, tokens produced."""

    drafted: int = 0
    accepted: int = 0
    verifies: int = 0
    produced: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.drafted + other.drafted,
            self.accepted + other.accepted,
            self.verifies + other.verifies,
            self.produced + other.produced,
        )


def speculate(agreed: Sequence[bool], gamma: int = GAMMA) -> Tally:
    """Plays greedy speculation over one answer, given per token whether the draft model would have chosen it.

    A round drafts `gamma` tokens (fewer at the end of the answer), accepts those before the first disagreement, and
    adds the verifier's own token while the answer lasts.
    """
    tally, done = Tally(), 0
    while done < len(agreed):
        drafted = min(gamma, len(agreed) - done)
        accepted = 0
        while accepted < drafted and agreed[done + accepted]:
            accepted += 1
        produced = min(accepted + 1, len(agreed) - done)
        tally += Tally(drafted, accepted, 1, produced)
        done += produced
    return tally


@torch.no_grad()
def agreement(
    draft: Answerer, rows: Sequence[Sample], answers: Sequence[Answer], flat: Image.Image | None = None
) -> list[list[bool]]:
    """For every answer of the verifier, whether the draft model's greedy choice agrees, token by token."""
    agreed: list[list[bool]] = []
    for batch in batches(rows):
        paths = [answer.tokens for answer in answers[len(agreed) : len(agreed) + len(batch)]]
        longest = max(map(len, paths))
        inputs = draft.prompts(batch, flat)
        start = inputs["input_ids"].shape[1]
        path = torch.zeros(len(batch), longest, dtype=torch.long)
        for index, tokens in enumerate(paths):
            path[index, : len(tokens)] = torch.tensor(tokens)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], path], 1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(path)], 1)
        positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        chosen = draft.model(**inputs, position_ids=positions).logits[:, start - 1 : -1].argmax(-1)
        same = (chosen == path).tolist()
        agreed += [row[: len(tokens)] for row, tokens in zip(same, paths, strict=True)]
    return agreed
