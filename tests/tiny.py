"""Small real models in a folder: an embedding table and a decoder of one layer whose graph writes its state where it
is told (dialect `scatter`), with a tokenizer of a few words. A drafter is a verifier whose weights were shaken."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from tokenizers import Tokenizer as Words
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from msao_compile.manifest.frozen import FileRef
from msao_compile.manifest.schema import DecoderFacts, Model, RuntimeSettings, StateSpec
from msao_compile.runtime.backends.base import EngineFile
from msao_compile.runtime.backends.ort import OrtDecoder, OrtEngine
from msao_compile.runtime.session import ModelSession

HIDDEN, VOCABULARY, CAPACITY, END = 16, 24, 64, 23
SETTINGS = RuntimeSettings(threads=1, arena=False, warm_up=0)
EMBED = """<ir_version: 11, opset_import: ["" : 24]>
embed (int64[batch_size, sequence_length] input_ids) => (float[batch_size, sequence_length, 16] inputs_embeds) {
  inputs_embeds = Gather(table, input_ids)
}"""
DECODER = """<ir_version: 11, opset_import: ["" : 24]>
decoder (float[batch_size, sequence_length, 16] inputs_embeds, int64[batch_size, capacity] attention_mask,
         int64[batch_size, sequence_length] position_ids, int64[num_logits] logits_positions,
         int64[batch_size] write_indices, float[batch_size, 2, CAPACITY, 8] past_key,
         float[batch_size, 2, CAPACITY, 8] past_value)
     => (float[batch_size, num_logits, 24] logits, float[batch_size, 2, CAPACITY, 8] present_key,
         float[batch_size, 2, CAPACITY, 8] present_value)
<int64[4] split = {0, 0, 2, 8}, int64[3] joined = {0, 0, 16}, int64[1] one = {1}, int64[1] last = {-1},
 int64 axis = {1}, int64 nothing = {0}, float none = {0.0}, float hidden = {-10000.0}>
{
  place = Gather(places, position_ids)
  x = Add(inputs_embeds, place)
  q2 = MatMul(x, w_query)
  k2 = MatMul(x, w_key)
  v2 = MatMul(x, w_value)
  q3 = Reshape(q2, split)
  k3 = Reshape(k2, split)
  v3 = Reshape(v2, split)
  query = Transpose<perm = [0, 2, 1, 3]>(q3)
  new_key = Transpose<perm = [0, 2, 1, 3]>(k3)
  new_value = Transpose<perm = [0, 2, 1, 3]>(v3)
  present_key = TensorScatter<axis = 2>(past_key, new_key, write_indices)
  present_value = TensorScatter<axis = 2>(past_value, new_value, write_indices)
  keys = Transpose<perm = [0, 1, 3, 2]>(present_key)
  scores = MatMul(query, keys)
  counted = CumSum(attention_mask, axis)
  seats = Unsqueeze(counted, one)
  positions = Unsqueeze(position_ids, last)
  behind = Sub(seats, one)
  seen = LessOrEqual(behind, positions)
  known = Greater(attention_mask, nothing)
  wide = Unsqueeze(known, one)
  both = And(seen, wide)
  every = Unsqueeze(both, one)
  bias = Where(every, none, hidden)
  biased = Add(scores, bias)
  soft = Softmax<axis = -1>(biased)
  mixed = MatMul(soft, present_value)
  back = Transpose<perm = [0, 2, 1, 3]>(mixed)
  flat = Reshape(back, joined)
  total = Add(flat, x)
  chosen = Gather<axis = 1>(total, logits_positions)
  logits = MatMul(chosen, head)
}"""
DOTTED = {f"{when}_{kind}": f"{word}.0.{kind}" for when, word in (("past", "past_key_values"), ("present", "present"))
          for kind in ("key", "value")}  # fmt: skip
STATES = tuple(
    StateSpec(name=f"past_key_values.0.{kind}", output=f"present.0.{kind}", dtype="float32",
              shape=("batch_size", 2, CAPACITY, 8), update="in_place") for kind in ("key", "value")
)  # fmt: skip
SIZES = {
    "table": (VOCABULARY, HIDDEN), "places": (CAPACITY + 32, HIDDEN), "w_query": (HIDDEN, HIDDEN),
    "w_key": (HIDDEN, HIDDEN), "w_value": (HIDDEN, HIDDEN), "head": (HIDDEN, VOCABULARY),
}  # fmt: skip


def session(folder: Path, name: str = "cloud", seed: int = 0, shaken: float = 0.0) -> ModelSession:
    """A model whose weights follow from the seed; `shaken` moves them by so much, so that it often says the same."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = _weights(seed, shaken)
    _write(folder / "embed_tokens.onnx", EMBED, {"table": weights["table"]})
    decoder = {key: value for key, value in weights.items() if key != "table"}
    _write(folder / "decoder.onnx", DECODER.replace("CAPACITY", str(CAPACITY)), decoder)
    digests = {part: hashlib.sha256((folder / f"{part}.onnx").read_bytes()).hexdigest()
               for part in ("embed_tokens", "decoder")}  # fmt: skip
    model = Model(
        name=name, role="draft" if shaken else "target", family="tiny", components=digests, encoders=(),
        decoder=DecoderFacts(hidden_size=HIDDEN, vocab_size=VOCABULARY, kv_capacity=CAPACITY, tokens="input_ids",
                             position="rope", facts={}),
        tokenizer="tokenizer", preprocessor="tokenizer", files=_tokenizer(folder),
    )  # fmt: skip
    engines = {"embed_tokens": OrtEngine(EngineFile(folder / "embed_tokens.onnx", "scatter", SETTINGS))}
    return ModelSession(
        model, folder, engines, OrtDecoder(EngineFile(folder / "decoder.onnx", "scatter", SETTINGS, STATES))
    )


def prompt(seed: int, words: int = 5) -> str:
    """A few words that follow from a seed."""
    return " ".join(f"w{token}" for token in np.random.default_rng(seed).integers(1, VOCABULARY - 1, words))


def _weights(seed: int, shaken: float) -> dict[str, np.ndarray]:
    chance, noise = np.random.default_rng(seed), np.random.default_rng(seed + 1000)
    scales = {"table": 1.0, "places": 0.5, "head": 1.0}
    found = {}
    for name, shape in SIZES.items():
        value = chance.standard_normal(shape) * scales.get(name, 0.4)
        moved = noise.standard_normal(shape) * scales.get(name, 0.4) * shaken
        found[name] = (value + moved).astype(np.float32)
    return found


def _write(path: Path, text: str, weights: dict[str, np.ndarray]) -> None:
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    for value in (*model.graph.input, *model.graph.output):  # the text format takes no dots
        new = DOTTED.get(value.name, value.name)
        for node in model.graph.node:
            node.input[:] = [new if name == value.name else name for name in node.input]
            node.output[:] = [new if name == value.name else name for name in node.output]
        value.name = new
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _tokenizer(folder: Path) -> tuple[FileRef, ...]:
    place = folder / "tokenizer"
    place.mkdir(exist_ok=True)
    names = ["unknown", *(f"w{token}" for token in range(1, END)), "end"]
    words = Words(WordLevel({name: token for token, name in enumerate(names)}, unk_token="unknown"))
    words.pre_tokenizer = WhitespaceSplit()
    words.save(str(place / "tokenizer.json"))
    template = "{% for message in messages %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endfor %}"
    (place / "chat_template.jinja").write_text(template)
    (place / "generation_config.json").write_text(f'{{"eos_token_id": {END}}}')
    return tuple(
        FileRef(path=f"tokenizer/{path.name}", sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                size_bytes=path.stat().st_size) for path in sorted(place.iterdir())
    )  # fmt: skip
