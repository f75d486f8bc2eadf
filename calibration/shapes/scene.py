"""A scene: one to four shapes, each in its own cell of a 3 x 3 layout, before a background."""

from dataclasses import dataclass
from random import Random

PICTURE_PX = 72
CELL_PX = 24
PATCH_PX = 12

PAINTS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 80, 215),
    "yellow": (235, 215, 50),
    "purple": (140, 50, 170),
    "orange": (240, 135, 30),
    "white": (250, 250, 250),
}
COLORS = tuple(PAINTS)
SHAPES = ("circle", "square", "triangle", "cross", "diamond")
SIZES = ("small", "large")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
BACKGROUNDS = ("plain", "gradient", "cluttered")

JITTER_PX = 2.0
RADIUS_PX = {"small": (4.8, 6.2), "large": (8.4, 9.9)}
PAINT_JITTER = 15
REPEATED_SHAPE_SHARE = 0.3


@dataclass(frozen=True)
class Thing:
    """One shape, with everything needed to draw it and to talk about it."""

    color: str
    shape: str
    size: str
    row: int
    column: int
    center_px: tuple[float, float]
    radius_px: float
    paint: tuple[int, int, int]

    @property
    def place(self) -> str:
        return f"{ROWS[self.row]} {COLUMNS[self.column]}"


@dataclass(frozen=True)
class Scene:
    """Shapes in reading order (top to bottom, left to right); no two share a colour."""

    things: tuple[Thing, ...]
    background: str
    tint: tuple[int, int, int]
    texture_seed: int


def draw_scene(rng: Random, fewest: int = 1) -> Scene:
    """A random scene with at least `fewest` shapes."""
    count = rng.randint(fewest, 4)
    cells = sorted(rng.sample(range(9), count))
    colors = rng.sample(COLORS, count)
    shapes: list[str] = []
    for _ in range(count):
        repeat = bool(shapes) and rng.random() < REPEATED_SHAPE_SHARE
        shapes.append(shapes[-1] if repeat else rng.choice(SHAPES))
    things = tuple(
        _thing(rng, color, shape, divmod(cell, 3)) for color, shape, cell in zip(colors, shapes, cells, strict=True)
    )
    grey = rng.randint(60, 150)
    tint = (_near(rng, grey), _near(rng, grey), _near(rng, grey))
    return Scene(things, rng.choice(BACKGROUNDS), tint, rng.getrandbits(32))


def _thing(rng: Random, color: str, shape: str, cell: tuple[int, int]) -> Thing:
    size = rng.choice(SIZES)
    row, column = cell
    center = (
        CELL_PX * (column + 0.5) + rng.uniform(-JITTER_PX, JITTER_PX),
        CELL_PX * (row + 0.5) + rng.uniform(-JITTER_PX, JITTER_PX),
    )
    red, green, blue = PAINTS[color]
    paint = (_near(rng, red), _near(rng, green), _near(rng, blue))
    return Thing(color, shape, size, row, column, center, rng.uniform(*RADIUS_PX[size]), paint)


def _near(rng: Random, level: int) -> int:
    return min(255, max(0, level + rng.randint(-PAINT_JITTER, PAINT_JITTER)))
