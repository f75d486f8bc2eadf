"""The probe `classical`: gradient energy and entropy of a small grey picture; no model looks at anything.

Shape suffixes: H, W pixels of the small picture, R, C cells, N cells in reading order, P pixels of a cell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from msao_compile.runtime.answer import Clock
from msao_compile.runtime.mas import measures
from msao_compile.runtime.mas.layout import Tile
from msao_compile.runtime.mas.measures import Floats
from msao_compile.runtime.mas.probes import PROBE, Look, Readings, Settings
from msao_compile.runtime.mas.reading import read_cells
from msao_compile.runtime.mas.words import prompt_score
from msao_compile.runtime.session import ModelSession

if TYPE_CHECKING:
    from PIL.Image import Image

CELLS, CELL_PX = 6, 8
"""Cells in a row, and pixels of a cell: a picture becomes 48 x 48 pixels whatever its size."""
GREYS = 16
"""Levels of which the entropy is taken; finer ones would count noise."""
ENERGY_SPREAD = 4.0
"""Mean gradients that differ by less grey levels than this are noise of camera and codec."""


class Classical:
    """Where something is drawn, whatever it is and whatever was asked."""

    def __init__(self, settings: Settings, session: ModelSession) -> None:
        self.settings = settings

    def read(self, look: Look, session: ModelSession, clock: Clock) -> Readings:
        """See `Probe.read`; only pictures are read."""
        if not look.pictures:
            return Readings()
        with clock.module(PROBE):
            both = [energy_and_entropy(grey(picture)) for picture in look.pictures]
            energy_N, entropy_N = (np.concatenate(parts) for parts in zip(*both, strict=True))
            measured = (measures.scaled(energy_N, ENERGY_SPREAD), entropy_N, np.zeros(len(energy_N)))
            tiles = tuple(Tile(CELLS, CELLS, picture) for picture in range(len(look.pictures)))
            phi = prompt_score(look.request.ids, self.settings.words)
            grids = [tile.grid for tile in tiles]
            reading = read_cells(measured, 0.0, phi, grids, self.settings.fitted, self.settings.limits)
            return Readings({"image": reading}, {"image": tiles})


def grey(picture: Image) -> Floats:
    """[48, 48] grey levels from 0 to 255."""
    from PIL.Image import Resampling

    side = CELLS * CELL_PX
    # The gap lets Pillow shrink a large picture by whole numbers first, which takes a fraction of the time.
    small = picture.resize((side, side), Resampling.BOX, reducing_gap=2.0).convert("L")
    return np.asarray(small, np.float64)


def energy_and_entropy(grey_HW: Floats) -> tuple[Floats, Floats]:
    """Of each cell: `energy_N`, the mean length of its gradients, and `entropy_N` of its levels, 0 flat to 1."""
    down = np.abs(np.diff(grey_HW, axis=0, prepend=grey_HW[:1]))
    right = np.abs(np.diff(grey_HW, axis=1, prepend=grey_HW[:, :1]))
    energy_N = _cells(np.hypot(down, right)).mean(1)
    levels_NP = (_cells(grey_HW) * (GREYS / 256)).astype(np.int64)
    cells = len(levels_NP)
    counted = np.bincount((levels_NP + GREYS * np.arange(cells)[:, None]).reshape(-1), minlength=GREYS * cells)
    share = counted.reshape(cells, GREYS) / levels_NP.shape[1]
    entropy_N = -(share * np.log2(np.where(share > 0, share, 1))).sum(1) / np.log2(GREYS)
    return energy_N, entropy_N


def _cells(values_HW: Floats) -> Floats:
    """[N, P]."""
    split = values_HW.reshape(CELLS, CELL_PX, CELLS, CELL_PX).swapaxes(1, 2)
    return split.reshape(CELLS * CELLS, CELL_PX * CELL_PX)
