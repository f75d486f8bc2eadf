"""From what stages gave to the manifest: routes by role, modules once, cuts only with a proof."""

from __future__ import annotations

from typing import Any

import pytest

from msao_compile.manifest.evidence import ParityRow
from msao_compile.manifest.schema import DecoderFacts, FileRef, Graph, Model, Module, TensorSpec
from msao_compile.stages import compose
from msao_compile.stages.compose import Exported, Made, ModelParts, Object

PARTS = ("vision_encoder", "embed_tokens", "decoder")
FACTS = DecoderFacts(hidden_size=8, vocab_size=16, kv_capacity=32, tokens="input_ids", position="rope", facts={})


def model(name: str, role: str, parts: tuple[str, ...] = PARTS) -> Model:
    return Model(
        name=name, role=role, family="llava", components=dict.fromkeys(parts, "a" * 64), decoder=FACTS,
        encoders=(), tokenizer="tokenizer/x", preprocessor="preprocessor/x", files=(),
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
        ("text", "small", {"embed_tokens": "edge", "decoder": "edge"}, ()),
    ]


def test_the_order_in_the_task_does_not_matter() -> None:
    assert routes(model("big", "target"), model("small", "draft")) == routes(
        model("small", "draft"), model("big", "target")
    )


@pytest.mark.parametrize("role", ["draft", "target"])
def test_one_model_answers_on_every_route(role: str) -> None:
    assert [(name, used) for name, used, _, _ in routes(model("only", role))] == [
        ("edge", "only"), ("cloud", "only"), ("split", "only"), ("text", "only"),
    ]  # fmt: skip


def test_without_a_vision_encoder_there_is_nothing_to_split_after() -> None:
    assert [name for name, *_ in routes(model("text", "target", ("embed_tokens", "decoder")))] == ["edge", "cloud"]


def test_what_only_reads_what_it_hears_has_no_answer_to_text_alone() -> None:
    heard = model("ears", "target", ("audio_encoder", "encoder", "embed_tokens", "decoder"))
    assert [name for name, *_ in routes(heard)] == ["edge", "cloud", "split"]


def test_a_model_that_decodes_nothing_is_not_split() -> None:
    twin = model("twin", "target", ("vision_encoder", "text_encoder")).model_copy(update={"decoder": None})
    assert [name for name, *_ in routes(twin)] == ["edge", "cloud"]


def component(name: str, module: str) -> dict[str, Any]:
    return {"component": name, "id": module * 64, "params": 4, "weight_bytes": 16, "kv": name == "decoder",
            "tensors": [], "inputs": [], "outputs": []}  # fmt: skip


def parts(name: str, *components: dict[str, Any]) -> ModelParts:
    return ModelParts(name, "draft", {"components": list(components)}, 32, {})


def exported(*modules: str) -> dict[str, Exported]:
    facts = {"opset": 20, "inputs": [], "outputs": [], "states": []}
    files = {"b.safetensors": Object("b" * 64, 16), "a.onnx.data": Object("a" * 64, 8)}
    graphs = {("portable", "fp32"): Made(Object("0" * 64, 9), facts),
              ("portable", "int4"): Made(Object("1" * 64, 9), facts, Object("2" * 64, 3))}  # fmt: skip
    return {letter * 64: Exported(files, dict(graphs)) for letter in modules}


def test_a_module_that_two_models_have_is_listed_once_in_the_folder_of_the_first() -> None:
    models = [parts("one", component("vision_encoder", "a"), component("decoder", "b")),
              parts("two", component("vision_encoder", "a"), component("decoder", "c"))]  # fmt: skip
    found = compose.modules(models, exported("a", "b", "c"))
    assert [module.graphs[0].file.path for module in found] == [
        "modules/one/vision_encoder.onnx", "modules/one/decoder.onnx", "modules/two/decoder.onnx",
    ]  # fmt: skip
    assert [ref.path for ref in found[2].graphs[0].data] == ["modules/two/a.onnx.data", "modules/two/b.safetensors"]
    assert [[ref.path for ref in graph.data] for graph in found[1].graphs[1:]] == [["modules/one/decoder_q4.onnx.data"]]
    assert compose.owners(models) == {"a" * 64: "one", "b" * 64: "one", "c" * 64: "two"}


def spec(name: str, dtype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def module(name: str, letter: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Module:
    file = FileRef(path="x", sha256="0" * 64, size_bytes=1)
    graph = Graph(dialect="fused", opset=23, file=file, data=(), inputs=inputs, outputs=outputs)
    return Module(id=letter * 64, component=name, params=1, weight_bytes=4, graphs=(graph,))


def row(subject: str, word: str, max_abs: float) -> ParityRow:
    return ParityRow(model="one", subject=subject, dialect="fused", backend="ort", precision="fp32", verdict=word,
                     max_abs=max_abs, min_cosine=1.0, argmax_agreement=1.0, compared=5, bound="")  # fmt: skip


@pytest.mark.parametrize("word", ["FAIL", "AMBIGUOUS"])
def test_a_cut_is_offered_only_where_every_dialect_proved_it(word: str) -> None:
    features = spec("image_features", "float32", "9*tiles", 8)
    vision = module("vision_encoder", "a", (), (features,))
    embed = module("embed_tokens", "b", (spec("input_ids", "int64", "batch_size", "sequence_length"), features), ())
    cuts = [row("split after vision_encoder", "PASS", 1e-6), row("split after vision_encoder", "PASS", 3e-6),
            row("split after embed_tokens", "PASS", 0.0), row("split after embed_tokens", word, 9.0)]  # fmt: skip
    entry = model("one", "draft").model_copy(
        update={"components": {"vision_encoder": vision.id, "embed_tokens": embed.id}}
    )
    classes = {"one": {"one picture": 41, "text only": 0}, "other": {"one picture": 9}}
    [point] = compose.partition_points([entry], [vision, embed], cuts, classes)
    assert (point.after, point.proof.max_abs, point.proof.compared) == ("vision_encoder", 3e-6, 10)
    assert {spec.name for spec in point.tensors} == {"input_ids", "image_features"}
    words = compose.TEXT_TOKENS
    assert point.bytes_per_request == {"one picture": 41 * 8 * 4 + (41 + words) * 8, "text only": words * 8}


def test_after_the_embedding_positions_and_what_encoders_gave_the_decoder_cross_with_it() -> None:
    crossed = spec("cross_key_values", "float32", 1, 2, "frames", 4)
    embeds = spec("inputs_embeds", "float32", "batch_size", "sequence_length", 8)
    positions = spec("position_ids", "int64", "batch_size", "sequence_length")
    taken = (embeds, crossed, positions, spec("attention_mask", "int64", 1, "n"))
    ends = {"audio_encoder": ((), (crossed,)), "embed_tokens": ((), (embeds,)), "decoder": (taken, ())}
    modules = [module(name, letter, *ends[name]) for name, letter in zip(ends, "abc", strict=True)]
    entry = model("one", "draft").model_copy(update={"components": {one.component: one.id for one in modules}})
    [point] = compose.partition_points([entry], modules, [row("split after embed_tokens", "PASS", 0.0)])
    assert {spec.name for spec in point.tensors} == {"inputs_embeds", "cross_key_values", "position_ids"}


def test_the_processor_s_file_goes_where_pictures_and_where_the_chat_template_are_read() -> None:
    split = {"family": "llava", "tokens": None, "encoders": [], "components": []}
    names = ("tokenizer.json", "preprocessor_config.json", "processor_config.json")
    files = compose.model(ModelParts("x", "draft", split, 32, {name: Object("0" * 64, 9) for name in names})).files
    assert [file.path for file in files] == [
        "tokenizer/x/tokenizer.json",
        "preprocessor/x/preprocessor_config.json",
        "preprocessor/x/processor_config.json",
        "tokenizer/x/processor_config.json",
    ]


def test_a_draft_speculates_where_both_have_the_same_tokens() -> None:
    def told(name: str, role: str, digest: str) -> Model:
        file = FileRef(path=f"tokenizer/{name}/tokenizer.json", sha256=digest * 64, size_bytes=1)
        return model(name, role).model_copy(update={"tokenizer": f"tokenizer/{name}", "files": (file,)})

    pairs = {digest: routes(told("small", "draft", "a"), told("big", "target", digest)) for digest in ("a", "b")}
    assert ("speculate", "big", hosts(), ("cloud", "edge")) in pairs["a"]
    assert "speculate" not in [name for name, *_ in pairs["b"]]
