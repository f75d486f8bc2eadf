"""Tokens, text and chat prompts equal transformers', without transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from msao_compile.errors import InputError, PromptError
from msao_compile.runtime.tokens import Tokenizer, expand

TEXT = "The quick brown fox doesn't jump. Größe, naïve café, 日本語 and 🦊🏳️‍🌈!"
SPECIAL = ["<s>", "</s>", "<pad>", "<image>"]


def byte_level() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([TEXT] * 3, trainer)
    return backend


def llama_like() -> Backend:
    letters = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmnopqrstuvwxyz.", "▁th", "▁a"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁", "a")]
    vocabulary = {piece: number for number, piece in enumerate([*letters, "▁t"])}
    backend = Backend(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pieces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(pieces)
    return backend


def word_piece() -> Backend:
    words = ["[UNK]", "do", "n", "'", "t", ".", ",", "s", "we", "##ll", "re", "it", "!", "?", "n't", "'s"]
    backend = Backend(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece(cleanup=False)
    return backend


BACKENDS = {"byte level": byte_level, "llama-like": llama_like, "word piece": word_piece}


def load(folder: Path) -> Tokenizer:
    """Ours, with every file of the folder listed."""
    return Tokenizer.load(folder, [path.name for path in folder.iterdir()])


def saved(folder: Path, backend: Backend, **settings: Any) -> Any:
    """Save a tokenizer to a folder and load it back with transformers."""
    backend.add_special_tokens(SPECIAL)
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **{**named, **settings}).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module", params=BACKENDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """One of ours and transformers' for the same folder."""
    folder = tmp_path_factory.mktemp("tokenizer")
    reference = saved(folder, BACKENDS[request.param](), clean_up_tokenization_spaces=True)
    return load(folder), reference


def test_encoding_equals_transformers(pair: tuple[Tokenizer, Any]) -> None:
    ours, reference = pair
    for text in (TEXT, "the a abc", "do n't .", " ", "\n\n<image>x</s>", "é" * 50):
        assert ours.encode(text) == reference(text)["input_ids"]


@given(ids=st.lists(st.integers(0, 20) | st.integers(0, 320), max_size=40), skip=st.booleans())
@settings(max_examples=200, deadline=None)
def test_decoding_and_streaming_equal_transformers(pair: tuple[Tokenizer, Any], ids: list[int], skip: bool) -> None:
    ours, reference = pair
    assert ours.decode(ids, skip) == reference.decode(ids, skip_special_tokens=skip)
    stream = ours.stream_decoder(skip)
    assert "".join([*map(stream.push, ids), stream.flush()]) == ours.decode(ids, skip)


def test_spaces_before_punctuation_are_cleaned_up_as_transformers_does(pair: tuple[Tokenizer, Any]) -> None:
    ours, reference = pair
    ids = ours.encode("we 're it ! do n't , it 's n ' t ." * 5)
    stream = ours.stream_decoder()
    assert "".join([*map(stream.push, ids), stream.flush()]) == ours.decode(ids) == reference.decode(ids)


def test_vocabulary_size_and_special_tokens_equal_transformers(pair: tuple[Tokenizer, Any]) -> None:
    ours, reference = pair
    assert ours.vocab_size == len(reference)
    assert ours.eos_token_ids == (reference.eos_token_id,)


def test_a_stream_never_gives_half_a_character(tmp_path: Path) -> None:
    reference = saved(tmp_path, byte_level())
    ids = [reference.convert_tokens_to_ids(_byte_letters()[byte]) for byte in "a日🦊".encode()]
    stream = load(tmp_path).stream_decoder()
    assert [stream.push(token_id) for token_id in ids] == ["a", "", "", "日", "", "", "", "🦊"]
    assert stream.flush() == ""


def _byte_letters() -> dict[int, str]:
    """The byte-level alphabet: printable Latin-1 stands for itself, the rest is counted up from U+0100."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in kept]
    return {**{byte: chr(byte) for byte in kept}, **{byte: chr(256 + index) for index, byte in enumerate(moved)}}


def test_flush_gives_what_is_left_of_a_broken_character(tmp_path: Path) -> None:
    reference = saved(tmp_path, byte_level())
    stream = load(tmp_path).stream_decoder()
    assert stream.push(reference.convert_tokens_to_ids(_byte_letters()[0xE6])) == "" and stream.flush() == "\ufffd"


@pytest.mark.parametrize("flags", [{"add_bos_token": True}, {"add_eos_token": True}, {"add_bos_token": False}])
def test_sequence_ends_follow_tokenizer_config(flags: dict[str, bool], tmp_path: Path) -> None:
    reference = saved(tmp_path, byte_level(), **flags)
    assert load(tmp_path).encode("fox") == reference("fox")["input_ids"]


def test_a_bos_the_template_wrote_is_not_put_twice(tmp_path: Path) -> None:
    saved(tmp_path, byte_level(), add_bos_token=True)
    ours = load(tmp_path)
    assert ours.encode_rendered("<s>fox") == ours.encode("fox") == ours.encode_rendered("fox")


def test_tokens_only_tokenizer_config_knows_are_added(tmp_path: Path) -> None:
    saved(tmp_path, byte_level())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    extra = {"content": "<tool>", "lstrip": False, "rstrip": True, "normalized": False, "special": True}
    size = load(tmp_path).vocab_size
    config["added_tokens_decoder"] = {str(size): {**extra, "single_word": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, reference = load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.vocab_size == len(reference) == size + 1
    assert ours.encode("a <tool> b") == reference("a <tool> b")["input_ids"]
    assert ours.decode([size]) == ""


def test_generation_config_says_what_ends_generation(tmp_path: Path) -> None:
    saved(tmp_path, byte_level())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert load(tmp_path).eos_token_ids == (7, 9)


MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": [{"type": "text", "text": "Be <b>brief</b> & 'kind'."}]},
    {
        "role": "user",
        "name": None,
        "content": [{"type": "image", "image": np.zeros(3)}, {"type": "text", "text": "What é?"}],
    },
    {"role": "assistant", "thinking": "hm", "content": [{"type": "text", "text": "x", "n": 1.5, "ok": True}]},
]
TEMPLATES = {
    "whitespace": "{% for m in messages %}\n  {% if m.role == 'user' %}\n  U{{ m.content[0].type }}\n {% endif %}\n{% endfor %}\n.",  # noqa: E501
    "json": "{{ messages[0] | tojson }}{{ messages[2].content | tojson(indent=2) }}{{ messages[2] | tojson(sort_keys=True) }}",  # noqa: E501
    "loop controls": "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "special tokens": "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token is defined }}{{ tools }}{{ documents }}",  # noqa: E501
    "prompt": "{{ messages[0].content[0].text }}{% if add_generation_prompt %}Assistant:{% endif %}",
    "dates": "{{ strftime_now('%Y') }}",
    "plain data": "{{ messages[1].content[0].image }}{{ messages[1].name is defined }}{{ messages[2].reasoning_content }}",  # noqa: E501
    "dict": "{{ dict(a=1) | tojson }}{{ dict.fromkeys([1]) }}",
    "generators": "{{ messages | map(attribute='role') | join(',') }}{{ messages | length }}",
}


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_prompts_equal_transformers(name: str, add_generation_prompt: bool, tmp_path: Path) -> None:
    reference = saved(tmp_path, word_piece(), chat_template=TEMPLATES[name])
    expected = reference.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=add_generation_prompt)
    assert load(tmp_path).render(MESSAGES, add_generation_prompt) == expected


def test_openai_image_blocks_become_image_blocks(tmp_path: Path) -> None:
    saved(tmp_path, word_piece(), chat_template="{{ messages[0].content[0] | tojson }}")
    blocks = [{"type": "image_url", "image_url": {"url": "a.png"}}]
    rendered = load(tmp_path).render([{"role": "user", "content": blocks}])
    assert json.loads(rendered) == {"type": "image", "url": "a.png"}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("chat_template.jinja", "first"),
        ("chat_template.json", '{"chat_template": "first"}'),
        ("processor_config.json", '{"chat_template": "first"}'),
        ("tokenizer_config.json", '{"chat_template": [{"name": "default", "template": "first"}]}'),
    ],
)
def test_a_chat_template_is_found_wherever_checkpoints_keep_it(file: str, content: str, tmp_path: Path) -> None:
    word_piece().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "last"}')
    (tmp_path / file).write_text(content)
    assert load(tmp_path).render(MESSAGES) == "first"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refused the messages: roles must alternate"),
        ("{{ messages[0].role + 1 }}", "failed on the messages"),
        ("{{ ''.__class__.__mro__ }}", "refused the messages: access to attribute '__class__'"),
        ("{{ messages.append(1) }}", "refused the messages: access to attribute 'append'"),
        ("{% set ns = namespace(_x=1) %}", "underscore name '_x'"),
        ("{% for %}", "cannot be compiled"),
    ],
)
def test_a_template_that_refuses_is_a_prompt_error(template: str, message: str, tmp_path: Path) -> None:
    saved(tmp_path, word_piece(), chat_template=template)
    with pytest.raises(PromptError, match=message):
        load(tmp_path).render(MESSAGES)


def test_rendering_needs_messages_and_a_template(tmp_path: Path) -> None:
    saved(tmp_path, word_piece())
    with pytest.raises(PromptError, match="has no chat template"):
        load(tmp_path).render(MESSAGES)
    (tmp_path / "chat_template.jinja").write_text("x")
    with pytest.raises(PromptError, match="has no messages"):
        load(tmp_path).render([])
    with pytest.raises(PromptError, match="A message is a str"):
        load(tmp_path).render(["hello"])  # type: ignore[list-item]


def test_a_prompt_that_is_not_unicode_text_is_refused(pair: tuple[Tokenizer, Any]) -> None:
    with pytest.raises(PromptError, match="prompt is empty"):
        pair[0].encode("")
    with pytest.raises(PromptError, match="character 2 is the lone surrogate U\\+D83E"):
        pair[0].encode("ab\ud83e")
    with pytest.raises(PromptError, match="lone surrogate"):
        pair[0].encode(b"\xff".decode("utf-8", "surrogateescape"))


def test_the_nth_placeholder_becomes_the_nth_expansion() -> None:
    assert expand("a<i>b<i>", "<i>", ("<i><i>", "2")) == "a<i><i>b2"
    assert expand("no pictures", "", ()) == "no pictures"


@pytest.mark.parametrize(("text", "expansions"), [("a<i>", ()), ("a", ("1",)), ("<i><i><i>", ("1", "2"))])
def test_a_mismatch_of_placeholders_and_pictures_names_both_numbers(text: str, expansions: tuple[str, ...]) -> None:
    with pytest.raises(PromptError, match=f"{text.count('<i>')} placeholders? '<i>' for {len(expansions)} pictures?;"):
        expand(text, "<i>", expansions)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no listed tokenizer\.json"):
        load(tmp_path)
    with pytest.raises(InputError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.load(tmp_path, ["tokenizer.json"])


@pytest.mark.parametrize(
    "file", ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "chat_template.jinja"]
)
def test_a_file_that_is_not_listed_is_not_read(file: str, tmp_path: Path) -> None:
    word_piece().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / file).write_bytes(b"\xff")  # reading it would raise
    ours = Tokenizer.load(tmp_path, ["tokenizer.json"])
    assert ours.eos_token_ids == ()
    with pytest.raises(PromptError, match="has no chat template"):
        ours.render(MESSAGES)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_a_damaged_file_is_named(file: str, content: str, tmp_path: Path) -> None:
    word_piece().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / file).write_text(content)
    with pytest.raises(InputError, match=file):
        load(tmp_path)


def test_a_chat_template_that_is_not_text_is_named(tmp_path: Path) -> None:
    word_piece().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"chat_template\.jinja is not UTF-8"):
        load(tmp_path)
