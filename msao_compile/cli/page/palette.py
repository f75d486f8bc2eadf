"""One colour a component, the same in every picture; the style sheet holds the colours, light and dark."""

from __future__ import annotations

from collections.abc import Iterable

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
    "preprocess",
)
EXECUTION = ("preprocess", *COMPONENTS)


def colour_of(component: str) -> int:
    """The number of a component's colour; the last word of `edge/decoder` decides, anything unknown is grey."""
    name = component.rpartition("/")[2]
    return COMPONENTS.index(name) + 1 if name in COMPONENTS else OTHER


def in_execution_order(names: Iterable[str]) -> list[str]:
    """Names of components as they run, what runs in the cloud (`cloud/decoder`) after its like here."""

    def place(name: str) -> tuple[int, str, bool]:
        component = name.rpartition("/")[2]
        return EXECUTION.index(component) if component in EXECUTION else len(EXECUTION), component, "/" in name

    return sorted(names, key=place)
