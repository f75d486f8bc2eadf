"""Makes the standard model: SmolVLM-256M's dimensions, seeded random weights, a real `save_pretrained` folder.

Run as `python -m tests.bench.standard FOLDER`; a folder that is complete is left as it is.
"""

from __future__ import annotations

import argparse
import shutil
import string
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from tests.bench.work import IMAGE_TOKENS, PICTURE_PX, PROMPT_TOKENS, QUESTION, SEED, THREADS, Layout

VOCABULARY = 49_280
WEIGHT_STD = 0.02
OTHER_STD = {"o_proj": 0.006, "down_proj": 0.04}  # else attention drowns the last token and one token repeats for ever
PAD, START, END, IMAGE = "<pad>", "<|im_start|>", "<end_of_utterance>", "<image>"
FENCE, OVERVIEW = "<fake_token_around_image>", "<global-img>"
SPECIAL = (PAD, START, END, IMAGE, FENCE, OVERVIEW)
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<end_of_utterance>' }}{% endfor %}"
)
RECIPE = """\
recipe = 1
name = "{name}"
[models.standard]
checkpoint = "checkpoint"
role = "draft"
[tasks.vqa]
models = ["standard"]
[targets.cpu]
device = "local-cpu"
precision = "fp32"
dialect = "{dialect}"
[shapes.decoder]
batch = [1, 1, 1]
sequence = [1, 64, 256]
kv_capacity = 512
[parity]
fp32 = {{ min_cosine = 0.9999 }}
[runtime]
threads = {threads}
"""


def make(folder: Path) -> None:
    """Write checkpoint, picture, inputs and recipes below `folder`."""
    layout = Layout(folder)
    if layout.recipe.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(layout.checkpoint, ignore_errors=True)
    tokenizer = make_tokenizer()
    processor = make_processor(tokenizer)
    make_model().save_pretrained(layout.checkpoint)
    processor.save_pretrained(layout.checkpoint)
    make_picture().save(layout.picture)
    save_inputs(layout, tokenizer)
    layout.portable_recipe.write_text(RECIPE.format(name="portable", dialect="portable", threads=THREADS))
    layout.recipe.write_text(RECIPE.format(name="standard", dialect="fused", threads=THREADS))


def make_model() -> SmolVLMForConditionalGeneration:
    """Random weights, biases zero, norms one, the same for the same seed."""
    model = SmolVLMForConditionalGeneration(_config())
    chance = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                std = next((std for part, std in OTHER_STD.items() if part in name), WEIGHT_STD)
                parameter.normal_(0.0, std, generator=chance)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    model.generation_config = GenerationConfig(
        pad_token_id=SPECIAL.index(PAD), bos_token_id=SPECIAL.index(START), eos_token_id=SPECIAL.index(END)
    )
    return model


def _config() -> SmolVLMConfig:
    return SmolVLMConfig(
        image_token_id=SPECIAL.index(IMAGE),
        tie_word_embeddings=True,
        scale_factor=4,
        vision_config={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": PICTURE_PX,
            "patch_size": 16,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
            "pad_token_id": SPECIAL.index(PAD),
            "bos_token_id": SPECIAL.index(START),
            "eos_token_id": SPECIAL.index(END),
            "tie_word_embeddings": True,
        },
    )


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges: one token a byte, and words that nothing encodes to fill the vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fill = ("Ġ" + "".join(letters) for letters in product(string.ascii_lowercase, repeat=4))
    words = [*SPECIAL, *alphabet]
    words += [next(fill) for _ in range(VOCABULARY - len(words))]
    tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[token for token in SPECIAL if token not in (PAD, END)],
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def make_processor(tokenizer: PreTrainedTokenizerFast) -> Idefics3Processor:
    """One picture of 512 x 512 pixels as one tile, 64 tokens."""
    pictures = Idefics3ImageProcessorPil(
        size={"longest_edge": PICTURE_PX},
        max_image_size={"longest_edge": PICTURE_PX},
        do_image_splitting=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return Idefics3Processor(pictures, tokenizer, image_seq_len=IMAGE_TOKENS, chat_template=TEMPLATE)


def make_picture() -> Image.Image:
    """Coloured squares and noise."""
    chance = np.random.default_rng(SEED)
    squares = chance.integers(0, 256, (8, 8, 3)).repeat(PICTURE_PX // 8, 0).repeat(PICTURE_PX // 8, 1)
    noise = chance.integers(-20, 21, (PICTURE_PX, PICTURE_PX, 3))
    return Image.fromarray(np.clip(squares + noise, 0, 255).astype(np.uint8))


def save_inputs(layout: Layout, tokenizer: PreTrainedTokenizerFast) -> None:
    """What the original's own code makes of the request.

    Raises:
        ValueError: the prompt has not the promised number of tokens.
    """
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
    ]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    text = text.replace(IMAGE, FENCE + OVERVIEW + IMAGE * IMAGE_TOKENS + FENCE)
    input_ids = tokenizer(text, return_tensors="np").input_ids.astype(np.int64)
    if input_ids.shape != (1, PROMPT_TOKENS) or int((input_ids == SPECIAL.index(IMAGE)).sum()) != IMAGE_TOKENS:
        raise ValueError(f"the prompt has {input_ids.shape[1]} tokens instead of {PROMPT_TOKENS}; change QUESTION")
    pixels = np.asarray(Image.open(layout.picture), np.float32).transpose(2, 0, 1)[None, None]
    pixel_values = (pixels / 255 - 0.5) / 0.5
    np.savez(layout.inputs, input_ids=input_ids, pixel_values=pixel_values.astype(np.float32))


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path)
    make(arguments.parse_args().folder)
