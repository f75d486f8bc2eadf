"""The prompt's tokens equal AutoProcessor's, for processors built here around a tiny tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from msao_compile.errors import InputError
from msao_compile.runtime import tokens
from msao_compile.runtime.preprocess import Preprocessor, from_config

from .pictures import noise

SPECIAL = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<|image_pad|>", "</s>"]
TILES: dict[str, Any] = {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 32}}
IMAGES = [noise(50, 31), noise(20, 20), noise(40, 90)]


def tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([*SPECIAL, *(f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5))])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>")


def idefics3(**image_settings: Any) -> Any:
    return Idefics3Processor(Idefics3ImageProcessorPil(**TILES, **image_settings), tokenizer(), image_seq_len=5)


def smolvlm() -> Any:
    processor = object.__new__(processing_smolvlm.SmolVLMProcessor)  # its __init__ needs num2words, for videos alone
    processor.image_processor, processor.tokenizer = SmolVLMImageProcessorPil(**TILES), tokenizer()
    processor.fake_image_token, processor.global_image_token = "<fake_token_around_image>", "<global-img>"
    processor.image_token, processor.image_seq_len, processor.video_token = "<image>", 4, "<video>"
    return processor


def llava(strategy: str, extra: int, image_processor: Any) -> Any:
    settings = {"patch_size": 8, "vision_feature_select_strategy": strategy, "num_additional_image_tokens": extra}
    return LlavaProcessor(image_processor, tokenizer(), **settings)


class ImageOnlyQwen(Qwen2_5_VLProcessor):
    """Without a video processor, which needs torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> None:
        return None


def qwen2_5_vl() -> Any:
    return ImageOnlyQwen(Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=28 * 28 * 6), tokenizer())


CASES: dict[str, Callable[[], Any]] = {
    "idefics3": idefics3,
    "idefics3, not split": lambda: idefics3(do_image_splitting=False),
    "llava": lambda: llava("default", 1, LlavaImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)),
    "llava, full": lambda: llava("full", 1, CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=40)),
    "qwen2_5_vl": qwen2_5_vl,
}


def saved(processor: Any, folder: Path) -> Preprocessor:
    processor.save_pretrained(folder)
    section = json.loads((folder / "processor_config.json").read_text())
    return from_config(section["image_processor"], section)


def ids_here(processor: Any, preprocessor: Preprocessor, text: str, images: list[Image.Image]) -> list[int]:
    expanded = tokens.expand(text, preprocessor.placeholder, preprocessor(images).expansions)
    return list(processor.tokenizer(expanded)["input_ids"])


@pytest.mark.parametrize("case", CASES)
def test_input_ids_equal_the_saved_processors(case: str, tmp_path: Path) -> None:
    processor = CASES[case]()
    preprocessor = saved(processor, tmp_path)
    text = f"A {preprocessor.placeholder}\nand {preprocessor.placeholder}{preprocessor.placeholder} what?"
    reference = processor(images=IMAGES, text=text)["input_ids"]
    assert ids_here(processor, preprocessor, text, IMAGES) == list(reference[0])


def test_smolvlm_writes_the_text_its_processor_writes() -> None:
    processor = smolvlm()
    config = {**processor.image_processor.to_dict(), "image_processor_type": "SmolVLMImageProcessorFast"}
    ours = from_config(config, {"image_seq_len": 4, "processor_class": "SmolVLMProcessor"})(IMAGES).expansions
    outputs = processor.image_processor([IMAGES], return_row_col_info=True)
    assert list(ours) == [processor.replace_image_token(outputs, index) for index in range(len(IMAGES))]


def test_a_tokenizers_own_image_tokens_are_used_when_given() -> None:
    renamed = {
        "image_token": {"content": "<I>", "lstrip": False},
        "fake_image_token": "<F>",
        "global_image_token": "<G>",
        "image_seq_len": 2,
    }
    preprocessor = from_config({"image_processor_type": "Idefics3ImageProcessor", "do_image_splitting": False}, renamed)
    assert preprocessor([noise(8, 8)]).expansions == ("<F><G><I><I><F>",)


def test_a_dual_encoder_has_no_placeholder() -> None:
    clip = from_config({"image_processor_type": "CLIPImageProcessor"}, {"processor_class": "CLIPProcessor"})
    assert clip.placeholder == "" and clip([noise(8, 8)]).expansions == ()


@pytest.mark.parametrize("spelling", ["SiglipImageProcessor", "SiglipImageProcessorFast", "SiglipImageProcessorPil"])
def test_every_spelling_of_a_type_is_read(spelling: str) -> None:
    assert from_config({"image_processor_type": spelling, "size": {"height": 4, "width": 4}}) == from_config(
        {"image_processor": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 4, "width": 4}}}
    )


def test_the_feature_extractor_spelling_of_clip_is_read() -> None:
    old = from_config({"feature_extractor_type": "CLIPFeatureExtractor", "size": 20, "crop_size": 16})
    assert old([noise(8, 30)]).tensors["pixel_values"].shape == (1, 3, 16, 16)


def test_an_unknown_type_is_refused_with_what_is_known() -> None:
    with pytest.raises(InputError, match="Qwen2VLImageProcesor is not known; did you mean Qwen2VLImageProcessor"):
        from_config({"image_processor_type": "Qwen2VLImageProcesor"})


def test_an_unknown_processor_class_around_a_known_type_is_refused() -> None:
    with pytest.raises(InputError, match="LlavaNextProcessor is not known for CLIPImageProcessor"):
        from_config({"image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaNextProcessor"})


def test_a_llava_without_patch_size_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"processor_config\.json has no patch_size"):
        from_config({"image_processor_type": "CLIPImageProcessor"}, {"processor_class": "LlavaProcessor"})


def test_a_setting_of_the_wrong_kind_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="resample = 'bicubic'"):
        from_config({"image_processor_type": "CLIPImageProcessor", "resample": "bicubic"})
