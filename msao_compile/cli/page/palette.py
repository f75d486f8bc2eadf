"""One colour a component, the same in every picture; the style sheet holds the colours, light and dark."""

from __future__ import annotations

OTHER = 0
COMPONENTS = (
    "vision_encoder",
    "embed_tokens",
    "decoder",
    "projector",
    "lm_head",
    "audio_encoder",
    "video_encoder",
    "text_encoder",
    "classifier",
    "encoder",
)


def colour_of(component: str) -> int:
    """The number of a component's colour; the last word of `edge/decoder` decides, anything unknown is grey."""
    name = component.rpartition("/")[2]
    return COMPONENTS.index(name) + 1 if name in COMPONENTS else OTHER
