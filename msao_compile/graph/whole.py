"""From a torch model to one ONNX graph of all of it, each distinct layer of a repeated stack traced once.

Parameters are inputs of every trace, so no weight is read, folded or copied here; they become named initialisers whose
bytes are written by another stage.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from torch.utils import _pytree as pytree
from transformers.cache_utils import Cache

from msao_compile.errors import StageError, UnsupportedFamily
from msao_compile.graph.attend import Setting, Watch, attending
from msao_compile.graph.opsets import OPSETS
from msao_compile.graph.quick import quick
from msao_compile.graph.rewrite import rewritten
from msao_compile.graph.selections import Sites
from msao_compile.graph.state import EncoderDecoderStates, States, StateTensor
from msao_compile.manifest.schema import Dialect
from msao_compile.symbolic import zeros

logger = logging.getLogger(__name__)
LAYER_DOMAIN = "msao.layer"
LOGITS_POSITIONS = "logits_positions"
Tensors = dict[str, torch.Tensor]
UNTRACEABLE = (
    torch.onnx.OnnxExporterError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What torch raises over a model that it cannot trace."""
BY_DATA = ("data is not allocated", "data-dependent")
"""How torch says that a model reads what only a request has."""
GUARD = re.compile(r"Constraints violated .*? generated guard (.*?)(?:\.? - Not all values|\. Suggested fixes|$)")
"""How torch says that a model branches on a length."""
MANY_CALLS = 4
"""Of a layer in one run: it serves as many media."""
MANY_LAYERS = 512  # more than any model has; the cache of a decoder whose config does not say how many


@dataclass(frozen=True)
class Subject:
    """What to export: a model, the named inputs of one forward at two sizes, and how its own code is to be patched.

    `names[input]` names the axes; an axis whose lengths differ between the examples is dynamic. `tokens` names the
    input whose positions are decoded, None where nothing is. `bound(values)` is entered around every call of the model
    and gives the values that are its arguments.
    """

    model: nn.Module
    examples: tuple[Tensors, Tensors]
    names: Mapping[str, tuple[str, ...]]
    tokens: str | None
    outputs: tuple[str, ...]
    bound: Callable[[Tensors], AbstractContextManager[Tensors]] = contextlib.nullcontext


@dataclass
class Call:
    """What a layer was called with, and whether its answer is one tensor like the first it was given.

    `tail` is what stood behind that tensor where the answer was a tuple.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    simple: bool
    tail: tuple[None, ...] | None


@dataclass
class Seen:
    """What running a model once at each size told: its state, its first layer with state, its stacks of layers."""

    states: dict[str, StateTensor] = field(default_factory=dict)
    entrance: str | None = None
    calls: dict[str, list[list[Call]]] = field(default_factory=dict)
    asks: dict[str, tuple[int, ...]] = field(default_factory=dict)
    fusible: frozenset[int] = frozenset()
    rotary: bool = True
    everything: dict[str, bool] = field(default_factory=dict)

    def stacks(self, model: nn.Module) -> dict[str, list[str]]:
        """Paths of lists whose layers took a tensor first and gave one like it, in each call of a run.

        A tower's layers are called for pictures and again for clips; one with state is called once.
        """
        found: dict[str, list[str]] = {}
        for path, part in model.named_modules():
            layers = [f"{path}.{index}" for index in range(len(part))] if isinstance(part, nn.ModuleList) else []
            if len(layers) > 1 and all(self._is_simple(layer) for layer in layers):
                found[path] = layers
        return found

    def _is_simple(self, layer: str) -> bool:
        counts = [len(calls) for calls in self.calls.get(layer, [])]
        most = 1 if self.asks.get(layer) else MANY_CALLS
        alike = len(counts) == 2 and counts[0] == counts[1] and 1 <= counts[0] <= most
        return alike and all(call.simple for calls in self.calls[layer] for call in calls)


def empty_like(parameter: torch.Tensor) -> torch.Tensor:
    """A parameter of the same shape to trace with."""
    return zeros(parameter.shape, torch.float32 if parameter.is_floating_point() else parameter.dtype)


def states_for(model: Any, past: int, sequence: int, given: Tensors | None, raw: frozenset[int]) -> Cache:
    """The state object that this model's forward expects."""
    config = model.config.get_text_config(decoder=True)
    layers = max(int(getattr(config, name, None) or 0) for name in ("num_hidden_layers", "decoder_layers"))
    states = States(layers or MANY_LAYERS, past, sequence, given, raw)
    return EncoderDecoderStates(states) if model.config.is_encoder_decoder else states


def plain(states: Cache) -> States:
    """The self-attention state of either kind."""
    return states.self_attention_cache if isinstance(states, EncoderDecoderStates) else states  # type: ignore[return-value]


@contextlib.contextmanager
def prepared(subject: Subject, setting: Setting) -> Iterator[None]:
    """Everything that is patched while the model is looked at or traced."""
    with rewritten(subject.model, setting.sites), attending(setting, subject.model), torch.no_grad():
        yield


def call(subject: Subject, setting: Setting, values: Tensors, given: Tensors | None, past: int) -> dict[str, Any]:
    """One forward; its outputs by name, and under `states` what it left of its state."""
    given_values = {name: value for name, value in values.items() if name != LOGITS_POSITIONS}
    rows = values.get(LOGITS_POSITIONS)
    with subject.bound(given_values) as inputs:
        if subject.tokens is None:
            found = subject.model(**inputs)
            return {name: found[name] for name in subject.outputs}
        states = states_for(subject.model, past, values[subject.tokens].shape[1], given, setting.raw)
        setting.states = plain(states)
        takes_rows = "logits_to_keep" in inspect.signature(subject.model.forward).parameters
        more = {"logits_to_keep": rows} if takes_rows and rows is not None else {}
        logits = subject.model(**inputs, **more, past_key_values=states, use_cache=True)["logits"]
    if rows is not None and not takes_rows:
        logits = logits.index_select(1, rows)
    return {"logits": logits, "states": setting.states}


def look(subject: Subject) -> Seen:
    """Run the model at both sizes, state empty, and remember what matters for tracing it.

    Raises:
        StageError: attention is scaled by a length that varies. UnsupportedFamily: it decodes more positions than it
            is given tokens.
    """
    seen, watch = Seen(), Watch()
    setting = Setting("portable", watch=watch, sites=Sites(recording=True))
    paths = {part: path for path, part in subject.model.named_modules()}
    layers = {
        f"{path}.{index}"
        for path, part in subject.model.named_modules()
        if isinstance(part, nn.ModuleList)
        for index in range(len(part))
    }
    with prepared(subject, setting):
        for example in subject.examples:
            runs: dict[str, list[Call]] = {path: [] for path in layers}
            entered: list[str] = []
            watch.scales.append([])
            with _watched(subject.model, paths, runs, entered, setting, seen):
                call(subject, setting, {**example, **_few_rows(subject)}, None, 0)
            _refuse_longer(subject, example, runs.get(seen.entrance or "", []))
            for path, calls in runs.items():
                seen.calls.setdefault(path, []).append(calls)
            if setting.states is not None:
                seen.states = setting.states.found
    watch.refuse_scaling_by_length()
    known = subject.names.get("attention_mask", ("",))[-1] == "total_sequence_length"
    seen.fusible = watch.fusible if known else frozenset()  # how much of a buffer is filled it does not say itself
    seen.rotary = watch.halves
    seen.everything = setting.sites.everything
    return seen


def _refuse_longer(subject: Subject, example: Tensors, calls: list[Call]) -> None:
    """What a model puts before its tokens it would put there again in every step."""
    tokens = example[subject.tokens].shape[1] if subject.tokens is not None else 0
    for call in calls:
        first = _first(call.args, call.kwargs)
        if first.ndim == 3 and tokens and first.shape[1] > tokens:
            raise UnsupportedFamily(
                f"{type(subject.model).__name__} decodes {first.shape[1]} positions for {tokens} tokens: media that "
                "stand before the text and not in the place of tokens cannot be split off"
            )


def _few_rows(subject: Subject) -> Tensors:
    """Logits of two positions: those of every position of a long prompt are larger than all else."""
    return {} if subject.tokens is None else {LOGITS_POSITIONS: torch.arange(2)}


@contextlib.contextmanager
def _watched(
    model: nn.Module,
    paths: Mapping[nn.Module, str],
    runs: dict[str, list[Call]],
    entered: list[str],
    setting: Setting,
    seen: Seen,
) -> Iterator[None]:
    """Hooks on the layers: what each is called with, and where the way into the first that asks for state begins:
    there, or at a layer without state whose answer it takes as it is.
    """
    way: tuple[str, Any] = "", None  # where it began, and the last answer

    def before(layer: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal way
        if not entered and (way[1] is None or _first(args, kwargs) is not way[1]):
            way = paths[layer], None
        entered.append(f"{paths[layer]} {len(setting.states.asked) if setting.states is not None else 0}")

    def after(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal way
        path, asked = entered.pop().rsplit(" ", 1)
        states = setting.states
        own = states.asked[int(asked) :] if states is not None else []
        seen.asks[path] = tuple(sorted(set(own)))
        if own and seen.entrance is None and not entered:
            seen.entrance = way[0]
        if not entered:
            way = way[0], _answer(output)
        runs[path].append(_described(args, kwargs, output))

    handles = []
    for layer in [part for part, path in paths.items() if path in runs]:
        handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(layer.register_forward_hook(after, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def shapes_of(args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments whose tensors are shapes alone: those of every layer of a large model would fill its memory."""
    found: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map_only(
        torch.Tensor, lambda leaf: leaf.to("meta"), (args, dict(kwargs))
    )
    return found


def _first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return args[0] if args else kwargs.get("hidden_states")


def _answer(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) and output else output


def _described(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Call:
    first, answer = _first(args, kwargs), _answer(output)
    like = isinstance(first, torch.Tensor) and isinstance(answer, torch.Tensor) and answer.shape == first.shape
    alone = not isinstance(output, tuple) or all(item is None for item in output[1:])
    leaves = pytree.tree_leaves((args, kwargs))
    known = all(isinstance(leaf, torch.Tensor | Cache | int | float | str | None) for leaf in leaves)
    tail = output[1:] if isinstance(output, tuple) else None
    return Call(*shapes_of(args, kwargs), like and alone and known, tail if alone else None)


def trace(
    body: Callable[[Tensors, Tensors], Any],
    parameters: Tensors,
    inputs: Tensors,
    dynamic: Mapping[str, Any],
    dialect: Dialect,
) -> ir.Model:
    """Run torch.export and torch.onnx over `body`. Inputs of the result are the parameters and then the inputs.

    Raises:
        StageError: torch could not export it, or gave another opset than asked for.
    """
    from torch.export import export
    from transformers.exporters.exporter_onnx import _ONNX_TRANSLATION_TABLE
    from transformers.exporters.utils import apply_fx_node_fixes

    opset = OPSETS[dialect][0]
    named = {"parameters": parameters, "inputs": inputs}
    shapes = {"parameters": dict.fromkeys(parameters), "inputs": {key: dynamic.get(key) for key in inputs}}
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), quick():
            warnings.simplefilter("ignore")
            program = export(_Functional(body).eval(), (), kwargs=named, dynamic_shapes=shapes, strict=False)
            apply_fx_node_fixes("onnx", program.graph_module)
            made = torch.onnx.export(
                program,
                args=(),
                kwargs=named,
                opset_version=opset,
                input_names=[*parameters, *inputs],
                custom_translation_table=_ONNX_TRANSLATION_TABLE,
                verbose=False,
            )
    except UNTRACEABLE as error:
        cause = error.__cause__ or error
        said = " ".join(str(cause).split())[:400]
        guard = GUARD.search(said)
        if guard is not None and "sequence_length = Dim(" not in said:
            said = f"it goes another way where a length does not satisfy {guard[1][:160]}, and one graph has one way"
        if any(words in said for words in BY_DATA):
            said = f"what it does there depends on numbers of a request and not on its lengths alone ({said[:120]})"
        raise StageError(f"torch.onnx could not export{_where(error)}: {said}") from error
    if made is None or made.model.opset_imports.get("") != opset:
        got = None if made is None else made.model.opset_imports.get("")
        raise StageError(f"torch.onnx gave opset {got} where {opset} was asked for")
    return made.model


def _where(error: BaseException | None) -> str:
    """The line of a modeling file at which a trace ended, as ` FILE:LINE (FUNCTION)`; empty where it was in none."""
    found = ""
    while error is not None and not found:
        for frame in traceback.extract_tb(error.__traceback__):
            if "transformers/models" in frame.filename.replace("\\", "/"):
                found = f" {Path(frame.filename).name}:{frame.lineno} ({frame.name})"
        error = error.__cause__
    return found


class _Functional(nn.Module):
    """Calls `body(parameters, inputs)` where both are plain inputs of the trace."""

    def __init__(self, body: Callable[[Tensors, Tensors], Any]) -> None:
        super().__init__()
        self.body = body

    def forward(self, parameters: Tensors, inputs: Tensors) -> Any:
        return self.body(parameters, inputs)
