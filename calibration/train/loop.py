"""Trains one model in two stages, first to see (patch heads), then to answer, on a schedule that keeps a deadline."""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from time import perf_counter

import torch
from torch import nn
from transformers import Idefics3ForConditionalGeneration, Idefics3Processor

from calibration.train.losses import PatchHeads, WordAlignment, answer_loss
from calibration.train.rows import Batch, RowMaker, normalised, pictures

logger = logging.getLogger(__name__)

SEEING_PICTURES = 64
WARM_UP_STEPS = 30
FLOOR = 0.02
PATCH_WEIGHT = 0.3
LOG_EVERY = 50
IMAGE_START = 3
"""User token, fake image token and global image token come before the image tokens."""


@dataclass(frozen=True)
class Schedule:
    """How long to train: a stage ends at its steps or when its minutes are over, whichever comes first."""

    seeing_steps: int
    seeing_rate: float
    answer_steps: int
    answer_rate: float
    align_weight: float
    minutes: float
    save_every: int
    picture_rows: int


class Trainer:
    """Holds one model in training; `train` runs both stages and calls `save` on the way and at the end."""

    def __init__(
        self, model: Idefics3ForConditionalGeneration, processor: Idefics3Processor, schedule: Schedule, seed: int
    ) -> None:
        model.set_attn_implementation("eager")  # the fused kernel is slower on processors when given a mask
        self._model = model
        self._schedule = schedule
        self._rows = RowMaker(processor, schedule.picture_rows, Random(seed))
        self._heads = PatchHeads(model.model.vision_model.config.hidden_size)
        self._alignment = WordAlignment(processor.tokenizer)
        self._started = perf_counter()

    def train(self, save: Callable[[], None], each_log: Callable[[], None]) -> None:
        """Runs both stages; `each_log` is called at every log line (to change the thread count, say)."""
        self._model.train()
        self._learn_to_see()
        save()
        self._learn_to_answer(save, each_log)
        save()

    def _learn_to_see(self) -> None:
        vision = self._model.model.vision_model
        optimizers = optimizers_for((*vision.named_parameters(), *self._heads.named_parameters()))
        steps = self._schedule.seeing_steps
        for step in range(steps):
            scenes = self._rows.scenes(SEEING_PICTURES)
            with torch.autocast("cpu", torch.bfloat16):
                patches = vision(pixel_values=normalised(pictures(scenes))).last_hidden_state
            loss, right = self._heads.loss(patches.float(), scenes)
            rate = self._schedule.seeing_rate * _decay(step / steps) * _warm_up(step)
            _update(loss, optimizers, rate)
            if step % LOG_EVERY == 0 or step == steps - 1:
                self._log("see", step, rate, loss.item(), right)

    def _learn_to_answer(self, save: Callable[[], None], each_log: Callable[[], None]) -> None:
        optimizers = optimizers_for((*self._model.named_parameters(), *self._heads.named_parameters()))
        recent: deque[float] = deque(maxlen=LOG_EVERY)
        hits: deque[float] = deque(maxlen=LOG_EVERY)
        for step in range(self._schedule.answer_steps):
            minutes = (perf_counter() - self._started) / 60
            progress = max(step / self._schedule.answer_steps, minutes / self._schedule.minutes)
            if progress >= 1.0:
                break
            answer, hit, extra, right = self._losses(self._rows.batch())
            rate = self._schedule.answer_rate * _decay(progress) * _warm_up(step)
            _update(answer + extra, optimizers, rate)
            recent.append(answer.item())
            hits.append(hit)
            if (step + 1) % LOG_EVERY == 0:
                self._log("answer", step + 1, rate, sum(recent) / len(recent), [sum(hits) / len(hits), *right])
                each_log()
            if (step + 1) % self._schedule.save_every == 0:
                save()

    def _losses(self, batch: Batch) -> tuple[torch.Tensor, float, torch.Tensor, list[float]]:
        base = self._model.model
        shown, drawn = len(batch.pixels), len(batch.scenes)
        embed = base.text_model.get_input_embeddings()
        asked = batch.targets >= 0
        with torch.autocast("cpu", torch.bfloat16):
            patches = base.vision_model(pixel_values=batch.pixels).last_hidden_state
            image_tokens = base.connector(patches)
            words = embed(batch.ids)
            end = IMAGE_START + image_tokens.shape[1]
            seen = torch.cat([words[:shown, :IMAGE_START], image_tokens.to(words.dtype), words[:shown, end:]], 1)
            hidden = base.text_model(
                inputs_embeds=torch.cat([seen, words[shown:]]),
                attention_mask=batch.mask,
                position_ids=batch.positions,
                use_cache=False,
            ).last_hidden_state
            logits = self._model.lm_head(hidden[asked])
        targets = batch.targets[asked]
        answer = answer_loss(logits.float(), targets, batch.weights[asked])
        patch, _ = self._heads.loss(patches[:drawn].float(), batch.scenes)
        aligned, right = self._alignment.loss(image_tokens[:drawn].float(), embed.weight, batch.scenes)
        hit = (logits.argmax(-1) == targets).float().mean().item()
        return answer, hit, PATCH_WEIGHT * patch + self._schedule.align_weight * aligned, right

    def _log(self, stage: str, step: int, rate: float, loss: float, right: list[float]) -> None:
        seconds = perf_counter() - self._started
        shares = " ".join(f"{share:.3f}" for share in right)
        logger.info("%s %d: %.0f s, rate %.1e, loss %.4f, right %s", stage, step, seconds, rate, loss, shares)


def optimizers_for(parameters: Iterable[tuple[str, nn.Parameter]]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, convolutions, heads, norms and biases."""
    inner: list[nn.Parameter] = []
    outer: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in parameters:
        if parameter.ndim < 2:
            plain.append(parameter)
        elif parameter.ndim == 2 and "embed" not in name and "heads" not in name:
            inner.append(parameter)
        else:
            outer.append(parameter)
    groups = [{"params": outer, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(inner, lr=0.0, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True),
    ]


def _update(loss: torch.Tensor, optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    nn.utils.clip_grad_norm_([parameter for group in groups for parameter in group["params"]], 1.0)
    for group in groups:
        group["lr"] = rate
    for optimizer in optimizers:
        optimizer.step()


def _decay(progress: float) -> float:
    return FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def _warm_up(step: int) -> float:
    return min(1.0, (step + 1) / WARM_UP_STEPS)
