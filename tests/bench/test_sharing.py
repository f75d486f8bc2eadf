"""Sharing told from configs: what counts as the same weights, what a deployment saves, and what is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from building import run_here

from msao_compile import sketch
from msao_compile.errors import InputError, RecipeError
from msao_compile.recipe.read import read_recipe
from msao_compile.recipe.schema import Recipe, TargetChoice
from tests.bench.shares import Facts, Share, Tensor, identities, read_facts, tensors
from tests.bench.sharing import (
    FACTS,
    RECIPE,
    Memory,
    Use,
    atoms,
    bars,
    best_subsets,
    column,
    found_for,
    memory,
    models_once,
    more_heads,
    one_model_each,
    split,
    uses_of,
    whole_modules,
)
from tests.bench.sharing_page import markdown

HALF = TargetChoice(device="local-cpu", precision="fp16")
FOUR_BITS = TargetChoice(device="local-cpu", precision={"vision_encoder": "fp16", "decoder": "int4"})
TOWER, HEAD = Tensor("vision_encoder", (10, 10)), Tensor("decoder", (64, 10))
MODELS: dict[str, dict[str, Tensor]] = {
    "a": {"tower.w": TOWER, "tower.b": Tensor("vision_encoder", (10,)), "text.w": Tensor("text_encoder", (30, 10))},
    "b": {"vision.tower.w": TOWER, "vision.tower.b": Tensor("vision_encoder", (10,)), "head": HEAD},
    "c": {"tower.w": TOWER, "head": HEAD},
}
USES = [Use("match", "a"), Use("sort", "a"), Use("ask", "b"), Use("ask", "c")]


def share(**changed: str) -> Share:
    told = {"model": "b", "part": "vision.tower", "origin": "a", "origin_part": "tower", "kind": "frozen"}
    return Share.model_validate({**told, "why": "", "source": "", **changed})


FROM_A = [share(), share(model="c", part="tower", kind="premise")]


def figures(shares: list[Share], chosen: list[int]) -> Memory:
    return memory(atoms(USES, MODELS, identities(MODELS, shares), HALF), chosen)


def test_without_a_declaration_only_a_model_with_two_tasks_shares() -> None:
    a, b, c = 2 * (100 + 10 + 300), 2 * (110 + 640), 2 * (100 + 640)
    assert figures([], [0, 1, 2, 3]) == Memory(2 * a + b + c, a + b + c)
    assert figures([], [0, 2, 3]).saved == 0


def test_a_declared_part_is_held_once() -> None:
    assert figures(FROM_A[:1], [0, 2]) == Memory(2 * (410 + 750), 2 * (410 + 640))
    assert figures(FROM_A, [2, 3]) == Memory(2 * (750 + 740), 2 * (110 + 640 + 640))


def test_a_share_of_a_share_is_the_first_ones() -> None:
    chain = [share(), share(model="c", part="tower", origin="b", origin_part="vision.tower")]
    assert identities(MODELS, chain)["c", "tower.w"] == ("a", "tower.w")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"origin": "d"}, "names d, which is none of the models"),
        ({"part": "vision.tow"}, "b has no parameters under vision.tow"),
        ({"origin": "c"}, "vision.tower.b from c: it is (10,), and tower.b is not there"),
        ({"part": "vision", "origin_part": "text"}, "not there"),
    ],
)
def test_a_share_that_the_configs_contradict_is_refused(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(InputError) as told:
        identities(MODELS, [share(**wrong)])
    assert said in str(told.value)


def test_towers_of_other_shapes_are_not_the_same() -> None:
    wider = {**MODELS, "b": {**MODELS["b"], "vision.tower.w": Tensor("vision_encoder", (10, 11))}}
    with pytest.raises(InputError, match=r"it is \(10, 11\), and tower.w is \(10, 10\)"):
        identities(wider, [share()])


def test_shares_in_a_circle_are_refused() -> None:
    around = [share(), share(model="a", part="tower", origin="b", origin_part="vision.tower")]
    with pytest.raises(InputError, match="go in a circle"):
        identities(MODELS, around)


def test_facts_say_nothing_that_is_not_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "shares.toml"
    file.write_text('[[share]]\nmodel = "a"\nkind = "hoped"\n')
    with pytest.raises(RecipeError, match="kind"):
        read_facts(file)


def test_a_recipe_cannot_declare_a_share(tmp_path: Path) -> None:
    text = (FACTS.parents[1] / "whisper-small.toml").read_text(encoding="utf-8")
    file = tmp_path / "recipe.toml"
    file.write_text(f'{text}\n[[share]]\nmodel = "whisper"\n')
    with pytest.raises(RecipeError, match="share"):
        read_recipe(file)


def test_nothing_that_builds_knows_of_the_declarations() -> None:
    package = RECIPE.parents[1] / "msao_compile"
    read = [path for path in package.rglob("*.py") if "shares.toml" in path.read_text(encoding="utf-8")]
    assert read == []


def test_a_tower_in_two_precisions_is_there_twice() -> None:
    models = {"a": {"w": Tensor("vision_encoder", (32, 10))}, "b": {"w": Tensor("decoder", (32, 10))}}
    same = {("a", "w"): ("a", "w"), ("b", "w"): ("a", "w")}
    uses = [Use("x", "a"), Use("x", "b")]
    assert memory(atoms(uses, models, same, HALF), [0, 1]) == Memory(1280, 640)
    assert memory(atoms(uses, models, same, FOUR_BITS), [0, 1]) == Memory(640 + 180, 640 + 180)


def test_a_tower_inside_another_module_is_no_whole_module() -> None:
    same = identities(MODELS, [share()])
    whole = whole_modules(MODELS, same)
    assert whole["b", "vision.tower.w"] == whole["a", "tower.w"]  # here the tower is all of the module
    longer = {**MODELS, "b": {**MODELS["b"], "projector": Tensor("vision_encoder", (10, 64))}}
    whole = whole_modules(longer, identities(longer, [share()]))
    assert whole["b", "vision.tower.w"] != whole["a", "tower.w"]


def test_the_best_deployment_is_the_best_of_all() -> None:
    chance = random.Random(5)
    models = {
        name: {f"p.{i}": Tensor("decoder", (chance.randint(1, 9),)) for i in range(3)} for name in ("a", "b", "c", "d")
    }
    models["b"] |= {"p.0": models["a"]["p.0"], "p.1": models["a"]["p.1"]}
    same = {(model, name): (model, name) for model in models for name in models[model]}
    same |= {("b", "p.0"): ("a", "p.0"), ("b", "p.1"): ("a", "p.1")}
    uses = [Use("x", "a"), Use("x", "b"), Use("y", "a"), Use("y", "c"), Use("z", "d"), Use("z", "b")]
    held = atoms(uses, models, same, HALF)
    for count, best in best_subsets(uses, held).items():
        saved = []
        for mask in range(1, 1 << len(uses)):
            chosen = [number for number in range(len(uses)) if mask >> number & 1]
            if len(chosen) > 1 and len({uses[number].task for number in chosen}) == count:
                saved.append(memory(held, chosen).saved)
        assert best.of == len(saved)
        assert best.memory.saved == pytest.approx(max(saved))
        assert best.median_saved == pytest.approx(sorted(saved)[len(saved) // 2], abs=0.05)


def test_one_model_for_each_task_is_chosen_among_all_choices() -> None:
    best = one_model_each(USES, atoms(USES, MODELS, identities(MODELS, FROM_A), HALF))
    assert best.of == 2
    assert [use.model for use in best.uses] == ["a", "a", "b"]


def test_models_once_leaves_out_what_several_tasks_add() -> None:
    held = atoms(USES, MODELS, identities(MODELS, FROM_A), HALF)
    assert models_once(held, USES) == memory(held, [0, 2, 3])


def test_a_split_model_is_as_large_as_its_fuller_host() -> None:
    encoders = {name: Tensor(name, (size,)) for name, size in (("vision_encoder", 50), ("audio_encoder", 20))}
    assert split({"a": {**encoders, "head": HEAD}}, HALF)["a"] == Memory(2 * 710, 2 * 660)
    assert split(MODELS, HALF) == {"a": Memory(820, 600), "b": Memory(1500, 1280), "c": Memory(1480, 1280)}


def test_classifiers_on_one_tower_cost_their_heads() -> None:
    models = {"a": MODELS["a"], "a-linear": {"tower.w": TOWER, "head": HEAD}}
    heads = more_heads(models, [share(model="a-linear", part="tower")], HALF)
    assert heads[3] == (Memory(3 * 1480, 200 + 3 * 1280), Memory(820 + 3 * 1480, 820 + 3 * 1280))


@pytest.fixture(scope="module")
def real() -> tuple[Recipe, Mapping[str, dict[str, Tensor]], Facts]:
    recipe = read_recipe(RECIPE)
    return recipe, {name: tensors(Path(one.checkpoint)) for name, one in recipe.models.items()}, read_facts(FACTS)


def test_fourteen_models_answer_five_tasks(real: Any) -> None:
    recipe, models, facts = real
    uses = uses_of(recipe)
    assert len(models) == 14
    assert list(dict.fromkeys(use.task for use in uses)) == [
        "retrieval", "captioning", "vqa", "audio", "classification",
    ]  # fmt: skip
    assert {use.model for use in uses} == set(models)
    assert all(task == f"{use.task}.{use.model}" for task, use in zip(recipe.tasks, uses, strict=True))
    assert {one.model for one in facts.checkpoint} == set(models)
    assert {name for one in facts.apart for name in one.models} <= set(models)


def test_configs_give_as_many_parameters_as_the_publishers_files(real: Any) -> None:
    _, models, facts = real
    found = {name: sum(tensor.params for tensor in one.values()) for name, one in models.items()}
    published = {one.model: one.params for one in facts.checkpoint if one.params is not None}
    assert len(published) == 12
    assert {name: found[name] for name in published} == published


def test_every_target_of_the_recipe_holds_each_of_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketch, "run_job", run_here)
    found = sketch.sketch(read_recipe(RECIPE)).models
    assert len(found) == 14
    rooms = [(model.name, room.target) for model in found for room in model.targets if room.fits]
    assert rooms == [(model.name, target) for model in found for target in ("cloud", "orin")]


def test_configs_are_small_and_hold_no_weights() -> None:
    files = [path for path in FACTS.parent.rglob("*") if path.is_file() and path != FACTS]
    assert {path.name for path in files} == {"config.json"}
    assert sum(path.stat().st_size for path in files) < 20_000


def test_llava_holds_the_tower_of_clip_and_nothing_else_of_it(real: Any) -> None:
    _, models, facts = real
    same = column("frozen", models, facts.share)
    held = {name for (model, name), origin in same.items() if model == "llava-1.5-7b" and origin[0] != model}
    assert sum(models["llava-1.5-7b"][name].params for name in held) == 303_507_456  # 304.29 M less its projection
    assert all(name.startswith("model.vision_tower.") for name in held)


def test_what_was_trained_further_counts_under_the_premise_only(real: Any) -> None:
    _, models, facts = real
    for name, shared in (("frozen", set()), ("premise", {"whisper-large-v3"})):
        same = column(name, models, facts.share)
        origins = {origin[0] for (model, _), origin in same.items() if model == "qwen2-audio-7b"}
        assert origins == {"qwen2-audio-7b"} | shared


def test_the_page_has_what_was_found_and_says_what_falls_short(real: Any) -> None:
    recipe, models, facts = real
    found = found_for(recipe, recipe.targets["cloud"], models, facts)
    told = {"cloud": {"bars": bars(found), **found}}
    text = markdown({"command": "make", "commit": "0" * 12}, recipe, models, facts, told)
    line = next(line for line in text.splitlines() if line.startswith("| all five, all 20 uses"))
    memory_all = found["frozen"]["all"]
    assert f"{memory_all.shared / 1e9:.2f} ({memory_all.saved * 100:.1f} %)" in line
    verdicts = {(kind, name): saved >= asked for kind, name, asked, saved in told["cloud"]["bars"]}
    assert verdicts["multi-task, best deployment", "frozen"]
    assert not verdicts["multi-task, all 14 models in all 20 uses", "premise"]
    assert text.count("**short**") == sum(not met for met in verdicts.values())
    assert json.dumps(facts.model_dump(mode="json"))
