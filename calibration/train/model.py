"""The two models: the same Idefics3 architecture at two widths, with a processor that fits both."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from transformers import (
    GenerationConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from calibration.shapes.scene import PATCH_PX, PICTURE_PX
from calibration.train.tokenizer import CONTEXT_TOKENS, END, IMAGE, PAD, USER, token_id

SCALE_FACTOR = 2
IMAGE_TOKENS = (PICTURE_PX // PATCH_PX // SCALE_FACTOR) ** 2
HEADS = 4


@dataclass(frozen=True)
class Widths:
    """Hidden width, layers and MLP width of the vision tower and of the text model."""

    vision: tuple[int, int, int]
    text: tuple[int, int, int]


EDGE = Widths(vision=(96, 2, 256), text=(128, 3, 384))
CLOUD = Widths(vision=(160, 3, 448), text=(256, 6, 704))


def build(widths: Widths, tokenizer: PreTrainedTokenizerFast) -> Idefics3ForConditionalGeneration:
    """A fresh model with random weights."""
    pad, end, user, image = (token_id(tokenizer, token) for token in (PAD, END, USER, IMAGE))
    vision_hidden, vision_layers, vision_mlp = widths.vision
    text_hidden, text_layers, text_mlp = widths.text
    config = Idefics3Config(  # type: ignore[call-arg]  # takes the padding token unannounced
        vision_config={
            "hidden_size": vision_hidden,
            "intermediate_size": vision_mlp,
            "num_hidden_layers": vision_layers,
            "num_attention_heads": HEADS,
            "image_size": PICTURE_PX,
            "patch_size": PATCH_PX,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": text_hidden,
            "intermediate_size": text_mlp,
            "num_hidden_layers": text_layers,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": CONTEXT_TOKENS,
            "rope_theta": 10000.0,
            "pad_token_id": pad,
            "bos_token_id": user,
            "eos_token_id": end,
            "tie_word_embeddings": True,
        },
        image_token_id=image,
        scale_factor=SCALE_FACTOR,
        tie_word_embeddings=True,
        pad_token_id=pad,
    )
    model = Idefics3ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=end, pad_token_id=pad, bos_token_id=user, do_sample=False, max_new_tokens=64
    )
    return model


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Idefics3Processor:
    """The processor both models share: no resizing, no splitting, nine image tokens."""
    pictures = Idefics3ImageProcessorPil(
        size={"longest_edge": PICTURE_PX},
        max_image_size={"longest_edge": PICTURE_PX},
        do_image_splitting=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return Idefics3Processor(
        pictures, tokenizer, image_seq_len=IMAGE_TOKENS, chat_template=str(tokenizer.chat_template)
    )


def save(model: Idefics3ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Saves a half-precision copy with its processor; a reader sees the old folder or the new one, never a mixture."""
    half = Idefics3ForConditionalGeneration(model.config)
    half.load_state_dict(model.state_dict())
    half.generation_config = model.generation_config
    fresh, stale = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for left_over in (fresh, stale):
        shutil.rmtree(left_over, ignore_errors=True)
    half.half().save_pretrained(fresh)
    build_processor(tokenizer).save_pretrained(fresh)
    if folder.exists():
        folder.rename(stale)
    fresh.rename(folder)
    shutil.rmtree(stale, ignore_errors=True)
