"""One crop a picture: the CLIP, LLaVA and SigLIP processors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from msao_compile.errors import InputError, PictureError
from msao_compile.runtime.preprocess import pixels
from msao_compile.runtime.preprocess.prepared import Prepared
from msao_compile.runtime.preprocess.settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
BICUBIC = 3


@dataclass(frozen=True)
class PatchTokens:
    """How LlavaProcessor counts the tokens of one picture."""

    image_token: str
    patch_size: int
    extra_tokens: int

    def expansion(self, height: int, width: int) -> str:
        """The image token repeated for a picture of [height, width] after preprocessing."""
        return self.image_token * ((height // self.patch_size) * (width // self.patch_size) + self.extra_tokens)


@dataclass(frozen=True)
class CroppedPreprocessor:
    """Pad to a square, resize, crop the middle, normalise; each step optional."""

    scale: pixels.PixelScale
    resample: int
    square_color: tuple[int, int, int] | None
    size: Mapping[str, int] | None
    crop_size: tuple[int, int] | None
    tokens: PatchTokens | None

    @property
    def placeholder(self) -> str:
        """The image token, or nothing for a dual encoder."""
        return self.tokens.image_token if self.tokens else ""

    def __call__(self, images: Sequence[Image]) -> Prepared:
        """Give `pixel_values` [num_images, 3, height, width] float32.

        Raises:
            PictureError: a shape is too extreme to resize, or the pictures end up with different sizes.
        """
        if not images:
            return Prepared()
        framed = [self._frame(image) for image in images]
        if len({image.size for image in framed}) > 1:
            sizes = ", ".join(f"{image.width} x {image.height}" for image in framed)
            raise PictureError(f"The pictures of one request end up as {sizes}; give pictures of one size.")
        table_CV = self.scale.table()
        pixel_values = np.stack([pixels.to_numbers(image, table_CV) for image in framed])
        if self.tokens is None:
            return Prepared({"pixel_values": pixel_values})
        expansions = (self.tokens.expansion(image.height, image.width) for image in framed)
        return Prepared({"pixel_values": pixel_values}, tuple(expansions))

    def _frame(self, image: Image) -> Image:
        image = pixels.to_rgb(image)
        if self.square_color is not None:
            image = pixels.pad_to_square(image, self.square_color)
        if self.size is not None:
            image = pixels.resize(image, *pixels.target_size(image.height, image.width, self.size), self.resample)
        if self.crop_size is not None:
            image = pixels.center_crop(image, *self.crop_size)
        return image


def read_clip(config: Settings, processor: Settings) -> CroppedPreprocessor:
    """CLIPImageProcessor: resize the shortest edge, crop the middle."""
    if config.flag("do_pad", False):
        raise InputError(f"{config.name} sets do_pad, which is not supported here; set it to false.")
    return _read(config, processor, crops=True, square_color=None)


def read_llava(config: Settings, processor: Settings) -> CroppedPreprocessor:
    """LlavaImageProcessor: CLIP's steps, with the picture first centred on a square where `do_pad` is set."""
    mean = config.triple("image_mean", CLIP_MEAN)
    color = (int(mean[0] * 255), int(mean[1] * 255), int(mean[2] * 255))
    return _read(config, processor, crops=True, square_color=color if config.flag("do_pad", False) else None)


def read_siglip(config: Settings, processor: Settings) -> CroppedPreprocessor:
    """SiglipImageProcessor: resize to exactly height and width, no crop."""
    if config.flag("do_pad", False):
        raise InputError(f"{config.name} sets do_pad, which is not supported here; set it to false.")
    return _read(config, processor, crops=False, square_color=None)


def _read(
    config: Settings, processor: Settings, crops: bool, square_color: tuple[int, int, int] | None
) -> CroppedPreprocessor:
    mean, std = (CLIP_MEAN, CLIP_STD) if crops else (HALF, HALF)
    size = config.size("size", {"shortest_edge": 224} if crops else {"height": 224, "width": 224}, "shortest_edge")
    return CroppedPreprocessor(
        scale=config.pixel_scale(mean, std),
        resample=config.integer("resample", BICUBIC),
        square_color=square_color,
        size=size if config.flag("do_resize", True) else None,
        crop_size=_read_crop(config) if config.flag("do_center_crop", crops) else None,
        tokens=_read_tokens(config, processor),
    )


def _read_crop(config: Settings) -> tuple[int, int]:
    crop = config.size("crop_size", {"height": 224, "width": 224})
    if "height" not in crop or "width" not in crop:
        raise InputError(f"{config.name} has crop_size = {crop}; it must have height and width.")
    return crop["height"], crop["width"]


def _read_tokens(config: Settings, processor: Settings) -> PatchTokens | None:
    name = processor.text("processor_class", config.text("processor_class", ""))
    if name in DUAL_ENCODERS:
        return None
    if name != "LlavaProcessor":
        known = ", ".join(sorted(DUAL_ENCODERS - {""}))
        raise InputError(f"The processor class {name} is not known for {config.name}; known: LlavaProcessor, {known}.")
    dropped = 1 if processor.text("vision_feature_select_strategy", "") == "default" else 0
    return PatchTokens(
        image_token=processor.text("image_token", "<image>"),
        patch_size=processor.integer("patch_size"),
        extra_tokens=processor.integer("num_additional_image_tokens", 0) - dropped,
    )


DUAL_ENCODERS = frozenset({"", "CLIPProcessor", "SiglipProcessor", "VisionTextDualEncoderProcessor"})
"""Processor classes whose prompts hold no picture."""
