"""Rules of the training rows and labels."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from calibration.shapes.dataset import SEEDS
from calibration.shapes.render import patch_owners
from calibration.shapes.scene import CELL_PX, PATCH_PX, draw_scene
from calibration.train.rows import IGNORED, ROW_TOKENS, Batch, RowMaker
from calibration.train.tokenizer import train_tokenizer

EDGE = Path(__file__).parents[2] / "calibration" / "models" / "shapes-edge"


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(EDGE)


@pytest.fixture(scope="module")
def batch(processor: Any) -> Batch:
    return RowMaker(processor, 2, Random(3)).batch()


def test_rows_have_one_fixed_length(batch: Batch) -> None:
    assert batch.ids.shape == batch.positions.shape == batch.targets.shape == (4, ROW_TOKENS)
    assert batch.mask.shape == (4, 1, ROW_TOKENS, ROW_TOKENS)


def test_only_answers_are_learned(processor: Any, batch: Batch) -> None:
    learned = batch.targets != IGNORED
    assert torch.equal(learned, batch.weights > 0)
    assert torch.equal(batch.targets[:, :-1][learned[:, :-1]], batch.ids[:, 1:][learned[:, :-1]])
    assistant = processor.tokenizer.convert_tokens_to_ids("<|assistant|>")
    begins = learned & ~torch.roll(learned, 1, 1)
    assert bool((batch.ids[begins] == assistant).all())


def test_a_packed_question_gets_the_logits_it_gets_alone(batch: Batch) -> None:
    model: Any = AutoModelForImageTextToText.from_pretrained(EDGE, dtype=torch.float32, attn_implementation="eager")
    row, prefix = 0, 13
    last_start = int((batch.positions[row] == prefix).nonzero()[-1])
    last_end = int((batch.targets[row] != IGNORED).nonzero()[-1]) + 2
    alone = torch.cat([batch.ids[row, :prefix], batch.ids[row, last_start:last_end]])[None]
    with torch.no_grad():
        lone = model(input_ids=alone, pixel_values=batch.pixels[row][None, None]).logits[0, prefix:]
        seen = model.model.connector(model.model.vision_model(pixel_values=batch.pixels[row : row + 1])[0])
        words = model.get_input_embeddings()(batch.ids[row : row + 1])
        words[:, 3:12] = seen
        hidden = model.model.text_model(
            inputs_embeds=words,
            attention_mask=batch.mask[row : row + 1],
            position_ids=batch.positions[row : row + 1],
            use_cache=False,
        )[0]
        packed = model.lm_head(hidden)[0, last_start:last_end]
    assert last_start > prefix
    torch.testing.assert_close(packed, lone, atol=1e-3, rtol=1e-3)


def test_training_draws_from_training_seeds_only(processor: Any) -> None:
    class Recorder(Random):
        def choice(self, seq: Any) -> Any:
            assert seq == SEEDS["train"]
            return super().choice(seq)

    assert len(RowMaker(processor, 2, Recorder(1)).scenes(20)) == 20


def test_patches_belong_to_the_shape_of_their_cell() -> None:
    for seed in SEEDS["validation"][:100]:
        scene = draw_scene(Random(seed))
        owners = patch_owners(scene)
        for index, thing in enumerate(scene.things):
            rows, columns = (owners == index).nonzero()
            assert len(rows) > 0
            assert set(rows * PATCH_PX // CELL_PX) == {thing.row}
            assert set(columns * PATCH_PX // CELL_PX) == {thing.column}


def test_the_tokenizer_is_trained_the_same_each_time(processor: Any) -> None:
    assert train_tokenizer().get_vocab() == processor.tokenizer.get_vocab()
