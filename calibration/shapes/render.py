"""Draws a scene as a 72 x 72 RGB picture, the same bytes for the same scene."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from calibration.shapes.scene import PATCH_PX, PICTURE_PX, Scene, Thing

OVERSAMPLING = 2
CANVAS_PX = PICTURE_PX * OVERSAMPLING
GRADIENT_SWING = (25.0, 45.0)
SPECKS = (30, 45)
SPECK_RADIUS_PX = (0.8, 1.6)
SPECK_CONTRAST = 45
NOISE_LEVEL = 10.0
OWNED_PX = 14
"""A patch belongs to the shape that covers most of it, if that shape covers at least this many pixels."""

BLANK_COLOR = (84, 96, 112)
"""The flat picture used as "no information": a shade that backgrounds have, and neither black nor mid-grey."""


def blank_picture() -> Image.Image:
    """The fixed flat picture that stands for an absent one."""
    return Image.new("RGB", (PICTURE_PX, PICTURE_PX), BLANK_COLOR)


def picture(scene: Scene) -> Image.Image:
    """The scene as an RGB picture of 72 x 72 pixels."""
    texture = np.random.default_rng(scene.texture_seed)
    canvas = _background(scene, texture)
    pen = ImageDraw.Draw(canvas)
    if scene.background == "cluttered":
        _scatter_specks(pen, scene.tint, texture)
    for thing in scene.things:
        _draw(pen, thing, thing.paint)
    small = canvas.resize((PICTURE_PX, PICTURE_PX), Image.Resampling.BOX)
    if scene.background != "cluttered":
        return small
    pixels = np.asarray(small) + texture.normal(0.0, NOISE_LEVEL, (PICTURE_PX, PICTURE_PX, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def patch_owners(scene: Scene) -> NDArray[np.int64]:
    """Which thing covers each patch, as indices into `scene.things`, -1 for background: (6, 6)."""
    mask = Image.new("L", (CANVAS_PX, CANVAS_PX), 0)
    pen = ImageDraw.Draw(mask)
    for index, thing in enumerate(scene.things):
        _draw(pen, thing, index + 1)
    grid = PICTURE_PX // PATCH_PX
    side = PATCH_PX * OVERSAMPLING
    blocks = np.asarray(mask).reshape(grid, side, grid, side)
    covered = np.stack([(blocks == value).sum((1, 3)) for value in range(len(scene.things) + 1)])
    covered[0] = OWNED_PX * OVERSAMPLING**2
    owners: NDArray[np.int64] = covered.argmax(0).astype(np.int64) - 1
    return owners


def _background(scene: Scene, texture: np.random.Generator) -> Image.Image:
    levels = np.broadcast_to(np.array(scene.tint, dtype=np.float64), (CANVAS_PX, CANVAS_PX, 3))
    if scene.background == "gradient":
        angle = texture.uniform(0.0, 2.0 * np.pi)
        line = np.linspace(-1.0, 1.0, CANVAS_PX)
        slope = np.cos(angle) * line[None, :] + np.sin(angle) * line[:, None]
        levels = levels + (slope * texture.uniform(*GRADIENT_SWING))[:, :, None]
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def _scatter_specks(pen: ImageDraw.ImageDraw, tint: tuple[int, int, int], texture: np.random.Generator) -> None:
    count = int(texture.integers(*SPECKS))
    places = texture.uniform(0, CANVAS_PX, (count, 2))
    radii = texture.uniform(*SPECK_RADIUS_PX, count) * OVERSAMPLING
    shades = (np.array(tint) + texture.integers(-SPECK_CONTRAST, SPECK_CONTRAST + 1, (count, 3))).clip(0, 255)
    for (x, y), radius, (red, green, blue) in zip(places.tolist(), radii.tolist(), shades.tolist(), strict=True):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(red, green, blue))


def _draw(pen: ImageDraw.ImageDraw, thing: Thing, fill: tuple[int, int, int] | int) -> None:
    x, y = (OVERSAMPLING * value for value in thing.center_px)
    radius = OVERSAMPLING * thing.radius_px
    match thing.shape:
        case "circle":
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        case "square":
            half = 0.88 * radius
            pen.rectangle((x - half, y - half, x + half, y + half), fill=fill)
        case "triangle":
            base = y + 0.85 * radius
            pen.polygon([(x, y - radius), (x - radius, base), (x + radius, base)], fill=fill)
        case "diamond":
            reach = 1.1 * radius
            pen.polygon([(x, y - reach), (x - reach, y), (x, y + reach), (x + reach, y)], fill=fill)
        case "cross":
            arm = 0.36 * radius
            pen.rectangle((x - radius, y - arm, x + radius, y + arm), fill=fill)
            pen.rectangle((x - arm, y - radius, x + arm, y + radius), fill=fill)
        case unknown:
            raise ValueError(f"no such shape: {unknown!r}")
