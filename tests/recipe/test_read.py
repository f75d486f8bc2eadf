"""Reading recipes: what is accepted, and the one sentence for each thing that is not."""

from pathlib import Path

import pytest

from msao_compile.errors import RecipeError
from msao_compile.recipe.read import json_schema, read_recipe

GOOD = """
recipe = 1
name = "shapes-vqa"
[models.edge]
checkpoint = "checkpoints/edge"
role = "draft"
[models.cloud]
checkpoint = "checkpoints/cloud"
role = "target"
[tasks.vqa]
models = ["edge", "cloud"]
[targets.edge]
device = "jetson-orin-nano-8gb"
precision = { vision_encoder = "fp16", decoder = "int4" }
[targets.cloud]
device = "nvidia-l4"
precision = "fp16"
[shapes.decoder]
batch = [1, 1, 8]
sequence = [1, 64, 1024]
kv_capacity = 2048
[parity]
fp32 = { min_cosine = 0.9999, max_abs = 1e-3 }
[mas]
samples = "mas/shapes.jsonl"
epsilon = 0.01
"""
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("edge", "cloud"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    return tmp_path


def refusal(folder: Path, text: str | bytes) -> str:
    """The message `read_recipe` refuses `text` with, without the file name."""
    path = folder / "x.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value).replace("\\n", "")
    return str(caught.value).removeprefix(f"{path}: ")


def test_a_good_recipe_is_read_with_its_defaults(folder: Path) -> None:
    path = folder / "good.toml"
    path.write_text(GOOD)
    recipe = read_recipe(path)
    assert recipe.models["edge"].checkpoint == str(folder / "checkpoints/edge")
    assert recipe.mas is not None and recipe.mas.samples == str(folder / "mas/shapes.jsonl")
    assert recipe.targets["edge"].precision_of("decoder") == "int4"
    assert recipe.targets["edge"].precision_of("lm_head") == "fp32"
    assert recipe.targets["cloud"].precision_of("decoder") == "fp16"
    assert recipe.targets["edge"].graph_dialect == "portable"
    assert (recipe.parity.steps, recipe.runtime.warm_up, recipe.runtime.arena) == (8, 1, True)
    assert recipe.shapes.decoder is not None and recipe.shapes.decoder.sequence == (1, 64, 1024)


def test_a_hub_id_with_a_revision_is_left_for_later(folder: Path) -> None:
    path = folder / "hub.toml"
    path.write_text(GOOD.replace('"checkpoints/edge"', f'"org/some-model"\nrevision = "{REVISION}"'))
    model = read_recipe(path).models["edge"]
    assert (model.checkpoint, model.revision) == ("org/some-model", REVISION)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "kv_capacity = 2048",
            "kv_capacity = '2048'",
            "shapes.decoder.kv_capacity must be an integer, not the string '2048'",
        ),
        (
            "kv_capacity = 2048",
            "kv_capacity = 2048.0",
            "shapes.decoder.kv_capacity must be an integer, not the number 2048.0",
        ),
        (
            "kv_capacity = 2048",
            "kv_capacity = true",
            "shapes.decoder.kv_capacity must be an integer, not the boolean true",
        ),
        ("kv_capacity = 2048", "kv_capacity = 0", "shapes.decoder.kv_capacity must be at least 1, not the integer 0"),
        ("kv_capacity = 2048", "", "shapes.decoder.kv_capacity is missing: add it"),
        (
            "kv_capacity = 2048",
            "kv_capacity = 512",
            (
                "shapes.decoder allows a sequence of 1024 tokens, more than kv_capacity = 512: "
                "raise kv_capacity or lower the last number of sequence"
            ),
        ),
        (
            "batch = [1, 1, 8]",
            "batch = [1, 8]",
            "shapes.decoder.batch must be the three integers [min, opt, max], not 2 of them",
        ),
        (
            "batch = [1, 1, 8]",
            "batch = [1, 9, 8]",
            "shapes.decoder.batch must be [min, opt, max] with min <= opt <= max, not [1, 9, 8]",
        ),
        ("batch = [1, 1, 8]", "batch = [1, '1', 8]", "shapes.decoder.batch[1] must be an integer, not the string '1'"),
        ("batch = [1, 1, 8]", "batch = 8", "shapes.decoder.batch must be a list, not the integer 8"),
        (
            "kv_capacity",
            "kv_capacty",
            "shapes.decoder.kv_capacty is not a field of a recipe; did you mean 'kv_capacity'?",
        ),
        ("role =", "rol =", "models.edge.rol is not a field of a recipe; did you mean 'role'?"),
        ("[mas]", "[maas]", "maas is not a field of a recipe; did you mean 'mas'?"),
        (
            "max_abs",
            "zzz",
            "parity.fp32.zzz is not a field of a recipe; known here are min_cosine, max_abs, argmax_agreement",
        ),
        ("recipe = 1", "recipe = 2", "recipe must be 1, not the integer 2"),
        ("recipe = 1", "", "recipe is missing: add it"),
        (
            '"int4"',
            '"in4"',
            (
                "targets.edge.precision.decoder must be one of fp32, fp16, bf16, int8, fp8, int4, "
                "not the string 'in4'; did you mean 'int4'?"
            ),
        ),
        (
            'precision = "fp16"',
            "precision = 16",
            "targets.cloud.precision must be one of fp32, fp16, bf16, int8, fp8, int4, not the integer 16",
        ),
        (
            '"nvidia-l4"',
            '"nvidia-l44"',
            "targets.cloud.device 'nvidia-l44' is not in the target catalogue; did you mean…",
        ),
        ('role = "draft"', 'role = "target"', "tasks.vqa has two models of role 'target', edge and cloud: keep one"),
        (
            'role = "draft"',
            "",
            "models.edge.role is missing: add it",
        ),
        (
            '"edge", "cloud"]',
            '"edge", "clout"]',
            "tasks.vqa.models names 'clout', which [models] does not have; did you mean 'cloud'?",
        ),
        ('"edge", "cloud"]', '"edge", "edge"]', "tasks.vqa.models names a model twice: name each once"),
        ('["edge", "cloud"]', "[]", "tasks.vqa.models is empty: give at least one"),
        (
            "[models.cloud]",
            "[models.Edge]",
            "models.edge and models.Edge would share a folder where case is ignored: rename one",
        ),
        (
            "[models.cloud]",
            '[models."../cloud"]',
            (
                'models."../cloud" is not usable as a folder name: use at most 64 letters, digits, '
                "'-', '_' and '.', first a letter or digit"
            ),
        ),
        ('name = "shapes-vqa"', 'name = ".."', "name is not usable as a folder name: use at most 64 letters…"),
        ("min_cosine = 0.9999", "min_cosine = 1.5", "parity.fp32.min_cosine must be at most 1, not the number 1.5"),
        (
            "min_cosine = 0.9999",
            "min_cosine = nan",
            "parity.fp32.min_cosine must be a finite number, not the number nan",
        ),
        (
            "min_cosine = 0.9999, max_abs = 1e-3",
            "",
            "parity.fp32 sets no bound: give min_cosine, max_abs or argmax_agreement",
        ),
        (
            "kv_capacity = 2048",
            "kv_capacity = 3_000_000_000",
            "shapes.decoder.kv_capacity must be at most 2147483647, not the integer 3000000000",
        ),
        (
            "[mas]",
            "steps = 2043\n[mas]",
            "parity.steps = 2043 after a prompt of 6 tokens does not fit shapes.decoder.kv_capacity = 2048: lower "
            "parity.steps or raise kv_capacity",
        ),
        (
            "[mas]",
            "[runtime]\nthreads = 100000\n[mas]",
            "runtime.threads must be at most 1024, not the integer 100000",
        ),
        (
            "epsilon = 0.01",
            "epsilon = 0.01\nrecipe = 1",
            "mas.recipe is not a field of a recipe; a key below [mas] belongs to that table: move it above the first "
            "table",
        ),
        ("epsilon = 0.01", "epsilon = 0", "mas.epsilon must be greater than 0, not the integer 0"),
        (
            '"checkpoints/edge"',
            '"../edge"\nrevision = "' + REVISION + '"',
            "models.edge has a revision, but checkpoint '../edge' is not a hub id: remove the revision",
        ),
        (
            '"checkpoints/edge"',
            '"org/edge"\nrevision = "main"',
            "models.edge.revision must be a commit of 40 lower-case hexadecimal digits, not 'main'",
        ),
        ("epsilon = 0.01", "epsilon = 2026-11-22", "mas.epsilon must be a number, not the date or time 2026-11-22"),
        (
            "[mas]",
            "[models.edge]",
            "is not valid TOML: a key or table is written twice: Cannot declare ('models', 'edge')…",
        ),
        (
            "recipe = 1",
            "recipe = 1\nrecipe = 1",
            "is not valid TOML: a key or table is written twice: Cannot overwrite…",
        ),
        ("recipe = 1", "recipe = ", "is not valid TOML: Invalid value (at line 2, column 10)"),
    ],
)
def test_a_bad_recipe_is_refused_in_one_sentence(folder: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    said = refusal(folder, GOOD.replace(old, new, 1))
    assert said == message or (message.endswith("…") and said.startswith(message[:-1]))


def test_the_number_of_further_faults_is_told(folder: Path) -> None:
    text = GOOD.replace("kv_capacity = 2048", "kv_capacity = 'a'").replace("epsilon = 0.01", "epsilon = 'b'")
    assert refusal(folder, text).endswith("not the string 'a' (and 1 more)")


def test_a_missing_checkpoint_folder_is_named_where_it_was_looked_for(folder: Path) -> None:
    said = refusal(folder, GOOD.replace("checkpoints/edge", "./nowhere/../else"))
    assert said == (
        f"models.edge.checkpoint names no folder at {folder}/else; correct the path, or write a hub id as "
        "organisation/name"
    )


def test_what_could_be_a_hub_id_is_left_for_the_hub_to_know(folder: Path) -> None:
    path = folder / "x.toml"
    path.write_text(GOOD.replace("checkpoints/edge", "org/edge"))
    assert read_recipe(path).models["edge"].checkpoint == "org/edge"


def test_a_folder_wins_over_a_hub_id_of_the_same_name(folder: Path) -> None:
    path = folder / "x.toml"
    path.write_text(GOOD)
    assert read_recipe(path).models["edge"].checkpoint == str(folder / "checkpoints/edge")


def test_a_path_no_file_system_takes_is_refused(folder: Path) -> None:
    assert "is not a usable path" in refusal(folder, GOOD.replace("checkpoints/edge", "a\\u0000b"))


def test_bytes_that_are_not_text_are_refused(folder: Path) -> None:
    assert refusal(folder, b"name = '\xff'") == "byte 8 is not UTF-8; save the recipe as UTF-8 text"


def test_nesting_without_end_is_refused(folder: Path) -> None:
    assert refusal(folder, "a = " + "[" * 5000 + "]" * 5000) == "is nested too deeply for a recipe"


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"x\.toml: there is no such file; give the path of a recipe") as caught:
        read_recipe(tmp_path / "x.toml")
    assert caught.value.exit_code == 2


def test_a_folder_is_not_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot be read \(Is a directory\)"):
        read_recipe(tmp_path)


def test_the_json_schema_refuses_unknown_fields_too() -> None:
    told = json_schema()
    assert told["additionalProperties"] is False
    assert {"recipe", "name", "models", "tasks", "targets"} == set(told["required"])  # type: ignore[call-overload]


def test_a_byte_order_mark_is_no_fault(folder: Path) -> None:
    (folder / "bom.toml").write_text(GOOD, encoding="utf-8-sig")
    assert read_recipe(folder / "bom.toml").name == "shapes-vqa"


def test_a_recipe_without_decoder_shapes_holds_parity_to_the_default_cache(folder: Path) -> None:
    start, end = GOOD.index("[shapes.decoder]"), GOOD.index("[parity]")
    said = refusal(folder, (GOOD[:start] + GOOD[end:]).replace("[mas]", "steps = 1_000_000\n[mas]"))
    assert said.startswith("parity.steps = 1000000 after a prompt of 6 tokens does not fit")
