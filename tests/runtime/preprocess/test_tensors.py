"""The arrays equal transformers' own image processors (PIL backend) on every mode and odd size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from msao_compile.errors import PictureError
from msao_compile.runtime.preprocess import from_config

from .pictures import LARGE, MODES, SIZES, THIN

SMALL_TILES: dict[str, Any] = {"size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 64}}
PROCESSORS: dict[str, PilBackend] = {
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 48, "width": 50}),
    "clip, crop larger than picture": CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size=33),
    "clip, crop alone": CLIPImageProcessorPil(do_resize=False, crop_size={"height": 31, "width": 64}),
    "clip, both edges bounded": CLIPImageProcessorPil(
        size={"shortest_edge": 40, "longest_edge": 60}, crop_size=40, resample=2
    ),
    "llava": LlavaImageProcessorPil(size={"shortest_edge": 56}, crop_size=56),
    "llava, square": LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": 42}, crop_size=42),
    "siglip": SiglipImageProcessorPil(size={"height": 48, "width": 64}),
    "siglip, not normalised": SiglipImageProcessorPil(size={"height": 30, "width": 20}, do_normalize=False),
    "siglip, not rescaled": SiglipImageProcessorPil(size={"height": 30, "width": 20}, do_rescale=False, resample=1),
    "idefics3": Idefics3ImageProcessorPil(**SMALL_TILES),
    "idefics3, edge between tiles": Idefics3ImageProcessorPil(
        size={"longest_edge": 100}, max_image_size={"longest_edge": 64}
    ),
    "idefics3, one tile": Idefics3ImageProcessorPil(**SMALL_TILES, do_image_splitting=False),
    "smolvlm": SmolVLMImageProcessorPil(**SMALL_TILES, do_pad=False, resample=3),
    "qwen2_vl": Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=28 * 28 * 9),
    "qwen2_vl, one frame": Qwen2VLImageProcessorPil(
        size={"shortest_edge": 64 * 64, "longest_edge": 96 * 96}, patch_size=8, temporal_patch_size=1
    ),
}
PICTURES = {**MODES, **SIZES, **LARGE}


def config_of(processor: PilBackend) -> dict[str, Any]:
    config = processor.to_dict()
    return {**config, "processor_class": "LlavaProcessor"} if "Llava" in config["image_processor_type"] else config


def largest_difference(processor: PilBackend, images: list[Image.Image]) -> float:
    reference: Mapping[str, Any] = processor(images, return_tensors="np")
    ours = from_config(config_of(processor), {"patch_size": 14})(images).tensors
    assert set(ours) == set(reference)
    assert {name: array.shape for name, array in ours.items()} == {name: reference[name].shape for name in ours}
    return max(float(np.abs(array.astype(np.float64) - reference[name]).max()) for name, array in ours.items())


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("processor", PROCESSORS)
def test_arrays_equal_the_checkpoints_own_processor(processor: str, picture: str) -> None:
    assert largest_difference(PROCESSORS[processor], [PICTURES[picture]]) <= 1e-5


@pytest.mark.parametrize("picture", THIN)
@pytest.mark.parametrize("processor", [name for name in PROCESSORS if not name.startswith(("qwen", "clip, both"))])
def test_thin_pictures_are_taken_where_the_processor_takes_them(processor: str, picture: str) -> None:
    assert largest_difference(PROCESSORS[processor], [THIN[picture]]) <= 1e-5


@pytest.mark.parametrize("picture", THIN)
def test_a_picture_longer_than_200_times_its_width_is_refused_by_qwen2_vl(picture: str) -> None:
    with pytest.raises(PictureError, match="more than 200 times as long as wide"):
        from_config(config_of(PROCESSORS["qwen2_vl"]))([THIN[picture]])


@pytest.mark.parametrize("processor", ["clip", "llava, square", "idefics3", "smolvlm", "qwen2_vl"])
def test_several_pictures_of_a_request_are_laid_out_in_order(processor: str) -> None:
    images = [MODES["RGBA"], SIZES["97x131"], MODES["CMYK"]]
    assert largest_difference(PROCESSORS[processor], images) <= 1e-5


def test_default_settings_are_those_of_the_processor_class() -> None:
    for processor in (CLIPImageProcessorPil(), SiglipImageProcessorPil(), Qwen2VLImageProcessorPil()):
        name = {"image_processor_type": type(processor).__name__}
        reference = processor([SIZES["97x131"]], return_tensors="np")["pixel_values"]
        assert np.abs(from_config(name)([SIZES["97x131"]]).tensors["pixel_values"] - reference).max() <= 1e-5


def test_no_pictures_give_no_tensors_and_no_text() -> None:
    prepared = from_config(config_of(PROCESSORS["idefics3"]))([])
    assert prepared.tensors == {} and prepared.expansions == ()


def test_a_thin_picture_that_would_grow_without_bound_is_refused() -> None:
    with pytest.raises(PictureError, match="4000 x 1 would be resized to 3360000 x 840"):
        from_config({"image_processor_type": "CLIPImageProcessor", "size": 840})([Image.new("RGB", (4000, 1))])


def test_a_thin_picture_that_would_shrink_to_nothing_is_refused() -> None:
    with pytest.raises(PictureError, match="300 x 1 would be resized to 60 x 0"):
        from_config(config_of(PROCESSORS["clip, both edges bounded"]))([THIN["300x1"]])


def test_pictures_that_end_up_with_different_sizes_are_refused() -> None:
    resize_only = from_config({"image_processor_type": "CLIPImageProcessor", "do_center_crop": False, "size": 8})
    with pytest.raises(PictureError, match="8 x 8, 16 x 8"):
        resize_only([Image.new("RGB", (8, 8)), Image.new("RGB", (16, 8))])
