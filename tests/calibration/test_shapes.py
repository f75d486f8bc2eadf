"""Rules of the picture-question set."""

import io
import json
import re
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from random import Random

import numpy as np
import pytest

from calibration.shapes.dataset import SEEDS, Sample, Split, sample, samples, write
from calibration.shapes.facts import NUMBERS
from calibration.shapes.gallery import PICTURES, write_gallery
from calibration.shapes.questions import FEWEST_THINGS, KINDS, VISION_KINDS, ask
from calibration.shapes.render import blank_picture, picture
from calibration.shapes.scene import PAINTS, Scene, Thing, draw_scene


def png(row: Sample) -> bytes:
    buffer = io.BytesIO()
    row.image.save(buffer, "PNG")
    return buffer.getvalue()


def scenes(count: int, fewest: int = 1) -> list[tuple[Scene, Random]]:
    drawn = []
    for seed in SEEDS["validation"][:count]:
        rng = Random(seed)
        drawn.append((draw_scene(rng, fewest), rng))
    return drawn


def named(scene: Scene, color: str) -> Thing:
    (thing,) = [thing for thing in scene.things if thing.color == color]
    return thing


def test_splits_never_overlap() -> None:
    for one, other in combinations(SEEDS.values(), 2):
        assert max(one.start, other.start) >= min(one.stop, other.stop)


def test_a_seed_of_another_split_is_refused() -> None:
    with pytest.raises(ValueError, match="outside split 'train'"):
        sample("train", SEEDS["heldout"].start, "color")


def test_more_samples_than_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="ask for fewer"):
        next(samples("heldout", len(SEEDS["heldout"]) + 1))


def test_the_same_seed_gives_the_same_bytes() -> None:
    first, again = list(samples("heldout", 48)), list(samples("heldout", 48))
    assert [png(row) for row in first] == [png(row) for row in again]
    assert [(row.question, row.answer) for row in first] == [(row.question, row.answer) for row in again]


def test_a_longer_set_begins_with_the_shorter() -> None:
    assert [row.id for row in samples("fit", 30)][:12] == [row.id for row in samples("fit", 12)]


@pytest.mark.parametrize("split", SEEDS)
def test_pictures_of_different_splits_differ(split: Split) -> None:
    others = {png(row) for other in SEEDS if other != split for row in samples(other, 36)}
    assert others.isdisjoint(png(row) for row in samples(split, 36))


def test_kinds_are_balanced_and_most_need_the_picture() -> None:
    rows = list(samples("heldout", 120))
    assert Counter(row.kind for row in rows) == dict.fromkeys(KINDS, 10)
    assert sum(row.needs_picture for row in rows) >= 60


@pytest.mark.parametrize("kind", VISION_KINDS)
def test_the_picture_decides_vision_answers(kind: str) -> None:
    answers: dict[str, list[str]] = {}
    for scene, rng in scenes(1500, fewest=2):
        question, answer = ask(kind, scene, rng)
        answers.setdefault(question, []).append(answer)
    asked_often = [found for found in answers.values() if len(found) >= 20]
    assert asked_often
    assert all(len(set(found)) >= 2 for found in asked_often)


@pytest.mark.parametrize("kind", ["arithmetic", "copy", "fact", "fact_sentence"])
def test_text_answers_follow_from_the_question(kind: str) -> None:
    answers: dict[str, str] = {}
    for scene, rng in scenes(1500):
        question, answer = ask(kind, scene, rng)
        assert answers.setdefault(question, answer) == answer


def test_sums_are_right() -> None:
    for scene, rng in scenes(200):
        question, answer = ask("arithmetic", scene, rng)
        a, sign, b = question.removeprefix("what is ").removesuffix("?").split()
        left, right = NUMBERS.index(a), NUMBERS.index(b)
        assert NUMBERS.index(answer) == (left + right if sign == "plus" else left - right)


def test_copies_repeat_the_question() -> None:
    for scene, rng in scenes(100):
        question, answer = ask("copy", scene, rng)
        assert question == f"repeat: {answer}"


TRAITS: dict[str, Callable[[Thing], str]] = {
    "color": lambda thing: thing.color,
    "shape": lambda thing: thing.shape,
    "size": lambda thing: thing.size,
    "position": lambda thing: thing.place,
}


@pytest.mark.parametrize("kind", TRAITS)
def test_references_have_one_referent_and_answers_match_it(kind: str) -> None:
    for scene, rng in scenes(300):
        question, answer = ask(kind, scene, rng)
        words = re.findall(r"\w+", question)
        meant = [
            thing
            for thing in scene.things
            if thing.color in words or thing.shape in words or question.endswith(f"at the {thing.place}?")
        ]
        assert [TRAITS[kind](thing) for thing in meant] == [answer]


def test_counts_match_the_scene() -> None:
    for scene, rng in scenes(300):
        question, answer = ask("count", scene, rng)
        noun = question.split()[2]
        wanted = [thing for thing in scene.things if noun == "shapes" or noun.startswith(thing.shape)]
        assert NUMBERS.index(answer) == len(wanted)


def test_comparisons_name_the_one_that_has_more() -> None:
    more = {
        "bigger": lambda thing: thing.radius_px,
        "higher": lambda thing: -thing.center_px[1],
        "further left": lambda thing: -thing.center_px[0],
    }
    for scene, rng in scenes(300, FEWEST_THINGS["comparison"]):
        question, answer = ask("comparison", scene, rng)
        match = re.fullmatch(r"which is ([\w ]+), the (\w+) shape or the (\w+) shape\?", question)
        assert match is not None
        a, b = named(scene, match[2]), named(scene, match[3])
        assert answer == max(a, b, key=more[match[1]]).color


def test_descriptions_name_every_shape() -> None:
    for scene, rng in scenes(200):
        _, answer = ask("describe", scene, rng)
        assert all(f"{thing.color} {thing.shape}" in answer for thing in scene.things)
        assert scene.background in answer


def test_shapes_are_painted_where_the_scene_says() -> None:
    for scene, _ in scenes(100):
        pixels = np.asarray(picture(scene)).astype(int)
        for thing in scene.things:
            x, y = (round(value) for value in thing.center_px)
            seen = pixels[y - 1 : y + 2, x - 1 : x + 2].mean((0, 1))
            nearest = min(PAINTS, key=lambda color: float(np.abs(seen - PAINTS[color]).sum()))
            assert nearest == thing.color


def test_a_comparison_of_one_shape_is_refused() -> None:
    alone = next(scene for scene, _ in scenes(50) if len(scene.things) == 1)
    with pytest.raises(ValueError, match="two shapes or more"):
        ask("comparison", alone, Random(0))


def test_the_blank_picture_is_flat_and_neither_black_nor_mid_grey() -> None:
    colors = np.unique(np.asarray(blank_picture()).reshape(-1, 3), axis=0).tolist()
    assert len(colors) == 1
    assert colors[0] not in ([0, 0, 0], [127, 127, 127], [128, 128, 128])


def test_written_rows_point_at_their_pictures(tmp_path: Path) -> None:
    assert write(samples("fit", 12), tmp_path) == 12
    rows = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == list(KINDS)
    assert all((tmp_path / row["image"]).is_file() for row in rows)
    assert set(rows[0]) == {"id", "image", "question", "answer", "kind", "needs_picture", "seed"}


def test_shipped_pictures_are_drawn_by_their_seeds(tmp_path: Path) -> None:
    write_gallery(tmp_path)
    drawn = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert drawn == {path.name: path.read_bytes() for path in PICTURES.iterdir()}


def test_shipped_pictures_are_heldout_and_cover_all_kinds() -> None:
    rows = [json.loads(line) for line in (PICTURES / "questions.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == set(KINDS)
    assert all(row["seed"] in SEEDS["heldout"] for row in rows)
    assert {row["image"] for row in rows} == {path.name for path in PICTURES.glob("*.png")}
