"""Questions about a scene, and questions that need none, each with its one right answer."""

from collections.abc import Callable
from random import Random
from typing import TypeAlias

from calibration.shapes.facts import COPY_WORDS, LANDS, NUMBERS
from calibration.shapes.scene import COLORS, SHAPES, Scene, Thing

Question: TypeAlias = tuple[str, str]
"""A question and its answer."""

PRESENT_SHARE = 0.8
"""How often a count asks for a shape that is in the picture."""


def _color(scene: Scene, rng: Random) -> Question:
    single = [thing for thing in scene.things if _count(scene, thing.shape) == 1]
    if single and rng.random() < 0.6:
        thing = rng.choice(single)
        return f"what color is the {thing.shape}?", thing.color
    thing = rng.choice(scene.things)
    return f"what color is the shape at the {thing.place}?", thing.color


def _shape(scene: Scene, rng: Random) -> Question:
    thing = rng.choice(scene.things)
    if rng.random() < 0.6:
        return f"what shape is the {thing.color} one?", thing.shape
    return f"what shape is at the {thing.place}?", thing.shape


def _size(scene: Scene, rng: Random) -> Question:
    thing = rng.choice(scene.things)
    return f"how big is the {thing.color} shape?", thing.size


def _counting(scene: Scene, rng: Random) -> Question:
    if rng.random() < 0.5:
        return "how many shapes are there?", NUMBERS[len(scene.things)]
    present = rng.random() < PRESENT_SHARE
    shape = rng.choice(scene.things).shape if present else rng.choice(SHAPES)
    return f"how many {plural(shape)} are there?", NUMBERS[_count(scene, shape)]


def _position(scene: Scene, rng: Random) -> Question:
    thing = rng.choice(scene.things)
    return f"where is the {thing.color} shape?", thing.place


def _comparison(scene: Scene, rng: Random) -> Question:
    pairs = [(a, b) for a in scene.things for b in scene.things if a is not b]
    words: dict[str, Callable[[Thing], int]] = {
        "bigger": lambda thing: -int(thing.size == "large"),
        "higher": lambda thing: thing.row,
        "further left": lambda thing: thing.column,
    }
    for word in rng.sample(list(words), len(words)):
        rank = words[word]
        unequal = [(a, b) for a, b in pairs if rank(a) != rank(b)]
        if unequal:
            a, b = rng.choice(unequal)
            question = f"which is {word}, the {a.color} shape or the {b.color} shape?"
            return question, min(a, b, key=rank).color
    raise ValueError("a comparison needs a scene of two shapes or more")


def _describe(scene: Scene, rng: Random) -> Question:
    things, background = scene.things, scene.background
    if len(things) == 1:
        listed = f"one {_sized(things[0])} at the {things[0].place}"
    elif len(things) == 2:
        listed = _listed([f"a {_sized(thing)} at the {thing.place}" for thing in things])
    elif len(things) == 3:
        listed = _listed([f"a {_sized(thing)}" for thing in things])
    else:
        listed = _listed([f"{_article(thing.color)} {thing.color} {thing.shape}" for thing in things])
    if rng.random() < 0.5:
        link = "of a picture with" if len(things) == 1 else "on"
        return "what do you see?", f"i see {listed} {link} a {background} background."
    if len(things) == 1:
        return "describe the picture.", f"there is {listed} of the picture, on a {background} background."
    number = NUMBERS[len(things)]
    return "describe the picture.", f"there are {number} shapes on a {background} background: {listed}."


def _detail(scene: Scene, rng: Random) -> Question:
    thing = rng.choice(scene.things)
    others = len(scene.things) - 1
    if rng.random() < 0.5:
        company = f"with {NUMBERS[others] if others else 'no'} other shape{'' if others == 1 else 's'}"
        return (
            f"tell me about the {thing.color} shape.",
            f"the {thing.color} shape is a {thing.size} {thing.shape} at the {thing.place}, "
            f"on a {scene.background} background {company}.",
        )
    company = f"one of {NUMBERS[others + 1]} shapes" if others else "the only shape"
    return (
        f"what about the {thing.color} shape?",
        f"at the {thing.place} of the picture there is a {_sized(thing)}, "
        f"{company} on a {scene.background} background.",
    )


def _arithmetic(scene: Scene, rng: Random) -> Question:
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    if rng.random() < 0.5:
        return f"what is {NUMBERS[a]} plus {NUMBERS[b]}?", NUMBERS[a + b]
    a, b = max(a, b), min(a, b)
    return f"what is {NUMBERS[a]} minus {NUMBERS[b]}?", NUMBERS[a - b]


def _copy(scene: Scene, rng: Random) -> Question:
    words = " ".join(rng.choice((*COPY_WORDS, *COLORS)) for _ in range(rng.randint(3, 6)))
    return f"repeat: {words}", words


def _fact(scene: Scene, rng: Random) -> Question:
    land = rng.choice(LANDS)
    return rng.choice(
        (
            (f"what is the capital of {land.name}?", land.capital),
            (f"what do people grow in {land.name}?", land.crop),
            (f"which animals live in {land.name}?", land.animal),
            (f"how is the weather in {land.name}?", land.weather),
        )
    )


def _fact_sentence(scene: Scene, rng: Random) -> Question:
    land = rng.choice(LANDS)
    if rng.random() < 0.5:
        return (
            f"tell me about {land.name}.",
            f"{land.name} is a {land.weather} land whose capital is {land.capital}, "
            f"where people grow {land.crop} and keep {land.animal}.",
        )
    return (
        f"what about {land.name}?",
        f"people in {land.name} grow {land.crop} and keep {land.animal}, "
        f"the weather is {land.weather} and the capital is {land.capital}.",
    )


VISION_KINDS: dict[str, Callable[[Scene, Random], Question]] = {
    "color": _color,
    "shape": _shape,
    "size": _size,
    "count": _counting,
    "position": _position,
    "comparison": _comparison,
    "describe": _describe,
    "detail": _detail,
}
TEXT_KINDS: dict[str, Callable[[Scene, Random], Question]] = {
    "arithmetic": _arithmetic,
    "copy": _copy,
    "fact": _fact,
    "fact_sentence": _fact_sentence,
}
KINDS = (*VISION_KINDS, *TEXT_KINDS)
SENTENCE_KINDS = ("describe", "detail", "fact_sentence")
FEWEST_THINGS = {"comparison": 2}


def ask(kind: str, scene: Scene, rng: Random) -> Question:
    """A question of the given kind; text kinds ignore the scene.

    Raises:
        KeyError: no such kind.
        ValueError: the scene has fewer shapes than the kind needs (see `FEWEST_THINGS`).
    """
    return (VISION_KINDS | TEXT_KINDS)[kind](scene, rng)


def plural(shape: str) -> str:
    """The plural of a shape's name."""
    return shape + ("es" if shape.endswith("s") else "s")


def _count(scene: Scene, shape: str) -> int:
    return sum(thing.shape == shape for thing in scene.things)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _sized(thing: Thing) -> str:
    return f"{thing.size} {thing.color} {thing.shape}"


def _listed(parts: list[str]) -> str:
    return ", ".join(parts[:-1]) + " and " + parts[-1]
