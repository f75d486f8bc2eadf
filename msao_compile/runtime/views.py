"""What each side sees of a question: in `strict` the cloud sees all, in `calibrated` what was shown to be enough."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from msao_compile.runtime.answer import Clock
from msao_compile.runtime.calibrated import Calibration, Packing, Reduced
from msao_compile.runtime.conversation import Prompt, without_pictures
from msao_compile.runtime.cost import Payload
from msao_compile.runtime.mas.payload import Form, Rung, pack
from msao_compile.runtime.mas.reader import Reader, Seen
from msao_compile.runtime.policy import Decision
from msao_compile.runtime.preprocess.decode import decode, read
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import Request
from msao_compile.runtime.speculate.drafter import Drafter, Piece
from msao_compile.runtime.speculate.plan import Alone

if TYPE_CHECKING:
    from PIL.Image import Image

    Picture = str | os.PathLike[str] | bytes | Image

CROSSES = {
    "drop": "left out", "thumbnail": "sent as thumbnails", "regions": "sent as thumbnails, sharp where it matters",
    "full": "sent whole",
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """What a user asked; `limit` None takes as many tokens as fit. `shown`: the width and height in which the cloud is
    to see each picture, one after the other, where some cross as thumbnails; 0 and 0 for one that crosses whole.
    """

    prompt: Prompt
    pictures: tuple[Picture, ...]
    limit: int | None
    sampling: SamplingParameters
    shown: tuple[int, ...] = ()

    def without_pictures(self) -> Question:
        """The same words alone."""
        return replace(self, prompt=without_pictures(self.prompt), pictures=(), shown=())

    @property
    def sizes(self) -> list[int]:
        """Bytes of each picture as it crosses, where that is known without encoding it."""
        return [_size(picture) for picture in self.pictures]


@dataclass(frozen=True)
class View:
    """A question as the drafter (`here`) and the cloud (`there`) see it. `seen` is what was made of it already; where
    `reader` is given it looks while the drafter begins, and `prunes` leaves what it drops out of the drafter's prompt.

    `payload` is what the cloud sees of the pictures, `why` says why the sides see what they do, and `alone` judges
    whether the edge's answer stands.
    """

    here: Question
    there: Question
    seen: Seen = field(default_factory=Seen)
    reader: Reader | None = None
    prunes: bool = False
    payload: Payload = "full"
    why: str = ""
    alone: Alone | None = None

    def opening(self, drafter: Drafter, clock: Clock) -> Iterator[Piece]:
        """The drafter's work before its first draft."""
        if self.reader is not None and self.prunes:
            yield from self.reader.pieces(self.here.prompt, self.here.pictures, self.seen, clock)

        def prepare() -> Request:
            return drafter.session.prepare(self.here.prompt, self.here.pictures)

        yield from drafter.opening(prepare, len(self.here.pictures), clock, self.seen, self.prunes)

    @property
    def lessened(self) -> bool:
        """Whether the drafter sees less than the cloud."""
        looks = self.reader is not None and self.reader.name != "words"  # words leave out whole pictures, above
        return (self.prunes and looks) or len(self.here.pictures) < len(self.there.pictures)


def plain(question: Question) -> View:
    """Both sides see everything."""
    return View(question, question)


def strict(question: Question, reader: Reader | None) -> View:
    """The cloud sees everything, the drafter what it needs: a wrong guess of that costs drafts, and no answer."""
    if reader is None or not question.pictures:
        return plain(question)
    text = question.without_pictures()
    ids = reader.words(text.prompt)
    if ids is None:
        return plain(question)
    action, needed = reader.action(ids, len(question.pictures), Seen())
    drops = action == "drop"
    why = f"pictures needed with a chance of {needed:.2f}: " + ("not drafted from" if drops else "drafted from")
    if not drops and reader.name != "words":
        why = f"drafted from what probe {reader.name} keeps of the pictures"
    return View(text if drops else question, question, reader=reader, prunes=not drops, why=why)


def calibrated(question: Question, calibration: Calibration, left: Reduced, taken: Decision, packing: Packing,
               seen: Seen) -> View:  # fmt: skip
    """Both sides see what is needed of a question that was looked at; the drafter more than that where it has more."""
    reader, payload = calibration.reader, taken.payload
    here = there = question
    if left.rung == "drop":  # what was shown of the edge's own answers to such questions is of the words alone
        here = question.without_pictures()
    if payload == "drop":
        there = here
    elif payload != "full":
        began_s = time.perf_counter()
        there = reduced(question, payload, seen, reader.form)
        payload = "full" if there is question else payload
        packing.learn(taken.payload, sum(question.sizes), sum(there.sizes), (time.perf_counter() - began_s) * 1e3)
    why = f"pictures needed with a chance of {left.needed:.2f}: {CROSSES[payload]}" if question.pictures else ""
    judge = left.judge
    if judge is not None:
        judge = replace(judge, picture_given=bool(here.pictures), first=taken.first)
    return View(here, there, seen if here is question else Seen(), reader, payload=payload, why=why, alone=judge)


def reduced(question: Question, rung: Rung, seen: Seen, form: Form) -> Question:
    """A question with its pictures on a rung of the ladder, each in full where that is no larger; the same where all
    are.
    """
    packed = []
    for place, picture in enumerate(question.pictures):
        boxes = seen.readings.kept_boxes(place) if rung == "regions" else []
        packed.append(pack(decode(picture), as_file(picture), boxes, rung, form))
    if all(one.rung == "full" for one in packed):
        return question
    shown = tuple(side * (one.rung == "thumbnail") for one in packed for side in (one.width, one.height))
    return replace(question, pictures=tuple(one.data for one in packed), shown=shown if any(shown) else ())


def as_file(picture: Picture) -> bytes:
    """The compressed picture as it is; one without a file upright and in RGB, as every route sees it, and lossless."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | os.PathLike):
        return read(picture)
    buffer = io.BytesIO()
    decode(picture).save(buffer, "PNG")
    return buffer.getvalue()


def _size(picture: Picture) -> int:
    """What is no picture has no size: whoever decodes it says why."""
    if isinstance(picture, bytes):
        return len(picture)
    if isinstance(picture, str | os.PathLike):
        try:
            return Path(picture).stat().st_size
        except (OSError, ValueError):
            return 0
    # as PNG makes it, about a byte for each pixel
    return int(getattr(picture, "width", 0)) * int(getattr(picture, "height", 0))
