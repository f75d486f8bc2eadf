"""From what stages gave to the manifest: routes by role, modules once, cuts only with a proof."""

from __future__ import annotations

from typing import Any

import pytest

from msao_compile.manifest.evidence import ParityRow
from msao_compile.manifest.schema import DecoderFacts, Graph, Model, Module, TensorSpec
from msao_compile.stages import compose
from msao_compile.stages.compose import Exported, ModelParts, Object

PARTS = ("vision_encoder", "embed_tokens", "decoder")
FACTS = DecoderFacts(
    hidden_size=8, vocab_size=16, num_layers=1, num_key_value_heads=1, head_dim=4, kv_capacity=32, position="rope"
)


def model(name: str, role: str, parts: tuple[str, ...] = PARTS) -> Model:
    return Model(
        name=name, role=role, family="llava", components=dict.fromkeys(parts, "a" * 64), decoder=FACTS,
        image_token_id=4, family_facts={}, tokenizer="tokenizer/x", preprocessor="preprocessor/x", files=(),
    )  # fmt: skip


def routes(*models: Model) -> list[tuple[str, str, dict[str, str], tuple[str, ...]]]:
    found = compose.routes({"vqa": [entry.name for entry in models]}, {entry.name: entry for entry in models})
    return [(route.name, route.model, dict(route.hosts), route.fallback) for route in found]


def hosts(**changed: str) -> dict[str, str]:
    return {**dict.fromkeys(PARTS, "cloud"), **changed}


def test_the_draft_answers_at_the_edge_and_the_target_in_the_cloud() -> None:
    assert routes(model("small", "draft"), model("big", "target")) == [
        ("edge", "small", dict.fromkeys(PARTS, "edge"), ()),
        ("cloud", "big", hosts(), ("edge",)),
        ("split", "big", hosts(vision_encoder="edge"), ("cloud", "edge")),
    ]


def test_the_order_in_the_task_does_not_matter() -> None:
    assert routes(model("big", "target"), model("small", "draft")) == routes(
        model("small", "draft"), model("big", "target")
    )


@pytest.mark.parametrize("role", ["draft", "target"])
def test_one_model_answers_on_every_route(role: str) -> None:
    assert [(name, used) for name, used, _, _ in routes(model("only", role))] == [
        ("edge", "only"), ("cloud", "only"), ("split", "only"),
    ]  # fmt: skip


def test_without_a_vision_encoder_there_is_nothing_to_split_after() -> None:
    assert [name for name, *_ in routes(model("text", "target", ("embed_tokens", "decoder")))] == ["edge", "cloud"]


def component(name: str, module: str, borrowed: str | None = None) -> dict[str, Any]:
    tensor = (
        {"name": "w", "shape": [4], "borrowed": [borrowed, "w"]}
        if borrowed
        else {"name": "w", "shape": [4], "offset": 0}
    )
    size = 0 if borrowed else 16
    return {"component": name, "id": module * 64, "params": 4, "weight_bytes": size, "kv": name == "decoder",
            "tensors": [tensor], "inputs": [], "outputs": []}  # fmt: skip


def parts(name: str, *components: dict[str, Any]) -> ModelParts:
    return ModelParts(name, "draft", {"components": list(components)}, 32, {})


def exported(*modules: tuple[str, int]) -> dict[str, Exported]:
    facts = {"opset": 20, "inputs": [], "outputs": []}
    return {
        letter * 64: Exported(Object(letter * 64, size), {"portable": (Object("0" * 64, 9), facts)})
        for letter, size in modules
    }


def test_a_module_that_two_models_have_is_listed_once_in_the_folder_of_the_first() -> None:
    models = [parts("one", component("vision_encoder", "a"), component("decoder", "b")),
              parts("two", component("vision_encoder", "a"), component("decoder", "c"))]  # fmt: skip
    found = compose.modules(models, exported(("a", 16), ("b", 16), ("c", 16)))
    assert [module.graphs[0].file.path for module in found] == [
        "modules/one/vision_encoder.onnx", "modules/one/decoder.onnx", "modules/two/decoder.onnx",
    ]  # fmt: skip
    assert compose.owners(models) == {"a" * 64: "one", "b" * 64: "one", "c" * 64: "two"}


def test_a_borrowed_weight_makes_the_lender_s_data_file_a_file_of_the_borrower() -> None:
    models = [parts("one", component("embed_tokens", "a"), component("decoder", "b", borrowed="embed_tokens"))]
    found = compose.modules(models, exported(("a", 16), ("b", 0)))
    assert [reference.path for reference in found[1].graphs[0].data] == ["modules/one/embed_tokens.onnx.data"]


def row(subject: str, word: str, max_abs: float) -> ParityRow:
    return ParityRow(model="one", subject=subject, dialect="fused", backend="ort", precision="fp32", verdict=word,
                     max_abs=max_abs, min_cosine=1.0, argmax_agreement=1.0, compared=5, bound="")  # fmt: skip


@pytest.mark.parametrize("word", ["FAIL", "AMBIGUOUS"])
def test_a_cut_is_offered_only_where_every_dialect_proved_it(word: str) -> None:
    features = TensorSpec(name="image_features", dtype="float32", shape=("num_images", 9, 8))
    file = {"path": "x", "sha256": "0" * 64, "size_bytes": 1}
    graph = Graph.model_validate({"dialect": "fused", "opset": 23, "file": file, "data": [], "inputs": [],
                                  "outputs": [features]})  # fmt: skip
    vision = Module(id="a" * 64, component="vision_encoder", params=1, weight_bytes=4, graphs=(graph,))
    cuts = [row("split after vision_encoder", "PASS", 1e-6), row("split after vision_encoder", "PASS", 3e-6),
            row("split after embed_tokens", "PASS", 0.0), row("split after embed_tokens", word, 9.0)]  # fmt: skip
    [point] = compose.partition_points([model("one", "draft")], [vision], cuts)
    assert (point.after, point.proof.max_abs, point.proof.compared) == ("vision_encoder", 3e-6, 10)
    assert [spec.name for spec in point.tensors] == ["input_ids", "image_features"]
    assert point.bytes_per_request == {"one picture, 32 text tokens": 9 * 8 * 4 + (9 + 32) * 8}


def test_the_processor_s_file_goes_where_pictures_and_where_the_chat_template_are_read() -> None:
    decoder = FACTS.model_dump(exclude={"kv_capacity"})
    split = {"family": "llava", "decoder": decoder, "components": [], "host": {}}
    names = ("tokenizer.json", "preprocessor_config.json", "processor_config.json")
    files = compose.model(ModelParts("x", "draft", split, 32, {name: Object("0" * 64, 9) for name in names})).files
    assert [file.path for file in files] == [
        "tokenizer/x/tokenizer.json",
        "preprocessor/x/preprocessor_config.json",
        "preprocessor/x/processor_config.json",
        "tokenizer/x/processor_config.json",
    ]
