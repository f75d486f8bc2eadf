"""The probe `early`: what the drafter's own encoders and embedding give, which its prefill takes over.

They run before the decoder and make nothing that is thrown away, so the probe adds arithmetic on their outputs alone:
features and the embedded words lie in one space, that of the decoder's input.
"""

from __future__ import annotations

import numpy as np

from msao_compile.manifest.schema import Encoder
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.backends.base import Arrays
from msao_compile.runtime.mas import layout, measures
from msao_compile.runtime.mas.layout import Tile
from msao_compile.runtime.mas.measures import Floats, Grids
from msao_compile.runtime.mas.probes import PROBE, Look, Readings, Settings, whole_pictures
from msao_compile.runtime.mas.reading import Reading, dense, read_clip, read_features, read_sound
from msao_compile.runtime.mas.temporal import pooled, segments
from msao_compile.runtime.mas.words import prompt_score, word_table
from msao_compile.runtime.session import ModelSession


class Early:
    """Reads pictures, clips and sounds in the drafter's features."""

    def __init__(self, settings: Settings, session: ModelSession) -> None:
        self.settings = settings
        self.is_word = word_table(session)

    def read(self, look: Look, session: ModelSession, clock: Clock) -> Readings:
        """See `Probe.read`."""
        request = look.request
        encoded = session.encode(request.tensors, clock)
        if not encoded:
            return Readings()
        session.check_placeholders(request, encoded)
        embeds = session.embed(request.ids[None], {**session.context(request.tensors), **encoded}, clock)
        with clock.module(PROBE):
            words_JD = self._words(request.ids, embeds)
            phi = prompt_score(request.ids, self.settings.words)
            found: dict[str, Reading] = {}
            tiles: dict[str, tuple[Tile, ...]] = whole_pictures(look) if look.pictures else {}
            for encoder in session.model.encoders:
                features = encoded.get(f"{encoder.modality}_features")
                if features is None:
                    continue
                features_ND = features.reshape(-1, session.facts.hidden_size)
                if encoder.modality == "image" and look.pictures:
                    found["image"], tiles["image"] = self._pictures(features_ND, words_JD, phi, look, session)
                elif encoder.modality != "image":
                    found[encoder.modality] = self._timed(encoder, features_ND, words_JD, phi, request.tensors)
        return Readings(found, tiles, encoded, embeds)

    def _words(self, ids_S: np.ndarray, embeds: Arrays) -> Floats:
        """What of the prompt features are held against."""
        return np.asarray(embeds["inputs_embeds"][0][self.is_word[ids_S]])

    def _pictures(
        self, features_ND: Floats, words_JD: Floats, phi: float, look: Look, session: ModelSession
    ) -> tuple[Reading, tuple[Tile, ...]]:
        sizes = [picture.size for picture in look.pictures]
        tiles = layout.picture_tiles(session.preprocessor, sizes, look.request.tensors, len(features_ND))
        if tiles is None or not len(words_JD):
            tiles = layout.whole(len(sizes))
            return dense([tile.grid for tile in tiles]), tiles
        grids = [tile.grid for tile in tiles]
        return self._cells(features_ND, words_JD, phi, grids), tiles

    def _cells(self, features_ND: Floats, words_JD: Floats, phi: float, grids: Grids) -> Reading:
        return read_features(features_ND, words_JD, phi, grids, self.settings.fitted, self.settings.limits)

    def _timed(
        self, encoder: Encoder, features_ND: Floats, words_JD: Floats, phi: float, tensors: Arrays
    ) -> Reading:  # fmt: skip
        """A clip by its frames, a sound by its seconds; dense where it cannot be told which is which."""
        if encoder.modality == "audio":
            units_TD = segments(features_ND, layout.seconds(tensors))
            grids: Grids = [(len(units_TD), 1)]
            reading = self._cells(units_TD, words_JD, phi, grids)
            frames_TD, relevance_T = units_TD, measures.similarity(units_TD, words_JD)
            return read_sound(reading, frames_TD, self._mean(encoder, frames_TD), relevance_T, self.settings.limits)
        grid_thw = tensors.get("video_grid_thw")
        found = None if grid_thw is None else layout.frame_grids(grid_thw, len(features_ND))
        if found is None or sum(rows * columns for rows, columns in found) != len(features_ND):
            return dense([(1, 1)])
        reading = self._cells(features_ND, words_JD, phi, found)
        ends = np.cumsum([rows * columns for rows, columns in found])[:-1]
        frames = np.split(features_ND, ends)
        frames_TD = np.stack(
            [pooled(cells.reshape(*grid, -1)) for cells, grid in zip(frames, found, strict=True)]
        )  # fmt: skip
        similar = np.split(measures.similarity(features_ND, words_JD), ends)
        relevance_T = np.array([cells.max() for cells in similar])
        return read_clip(reading, frames_TD, self._mean(encoder, frames_TD), relevance_T, self.settings.limits)

    def _mean(self, encoder: Encoder, frames_TD: Floats) -> Floats:
        """The sample set's mean; of another size (another model) or absent it is the origin."""
        mean_D = self.settings.means.get(encoder.modality)
        return mean_D if mean_D is not None and len(mean_D) == frames_TD.shape[1] else np.zeros(frames_TD.shape[1])
