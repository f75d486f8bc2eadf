"""What every picture preprocessor takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image


@dataclass(frozen=True)
class Prepared:
    """Arrays for the vision encoder, and the text that stands for each picture in the prompt.

    `tensors` are under their Hugging Face names. `expansions` holds, for each picture in order, the text that replaces
    one placeholder; it is empty where the family's prompt has no placeholder (dual encoders).
    """

    tensors: dict[str, NDArray[Any]] = field(default_factory=dict)
    expansions: tuple[str, ...] = ()


class Preprocessor(Protocol):
    """Turns decoded pictures into a vision encoder's inputs, as the checkpoint's own image processor does."""

    @property
    def placeholder(self) -> str:
        """The text in a prompt that stands for one picture; empty where prompts have none."""

    def __call__(self, images: Sequence[Image]) -> Prepared:
        """Prepare the pictures of one request; no pictures give no tensors.

        Raises:
            PictureError: a picture's shape is one the processor refuses.
        """
