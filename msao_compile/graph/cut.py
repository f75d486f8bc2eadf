"""Cut one graph of a whole model into its functional modules by what each node depends on.

A node that needs only pictures is the vision encoder's, one that needs only tokens (and features) the embedding's, one
that needs state, mask or positions the decoder's. What crosses becomes an output of one module and an input of the
next. Nothing has to be known of the model's classes, and the modules together are the whole by construction. Cross-
attention keys and values depend on the encoder alone: they leave it once per request.

What depends on weights and lengths alone belongs to whoever needs it and is repeated there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from msao_compile.errors import StageError
from msao_compile.manifest.schema import ENCODERS

MARK_DOMAIN = "msao.mark"
STEP, IDS, TEXT = "step", "ids", "text"
LATE = "late"
"""A length that only the tokens have which are decoded: whatever depends on it alone is repeated where it is needed."""
NAME = r"[A-Za-z_]\w*"
"""Of a length."""
MERGE = "merge"
"""Of a mark: features meet the tokens here, whichever tokens they are."""

_OPERATORS = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul", ast.FloorDiv: "Div", ast.Mod: "Mod"}
_FUNCTIONS = {"Min": "Min", "Max": "Max", "PythonMod": "Mod"}

Needs = frozenset[str]


@dataclass
class Part:
    """One module in the making: its nodes in order and what it takes and gives."""

    component: str
    nodes: list[ir.Node] = field(default_factory=list)
    inputs: dict[ir.Value, None] = field(default_factory=dict)
    outputs: dict[ir.Value, None] = field(default_factory=dict)


def component_of(needs: Needs, generates: bool) -> str:
    """The component that a node belongs to, by what it depends on; empty for what depends on nothing but lengths."""
    if needs <= {LATE}:
        return ""
    if STEP in needs:
        return "decoder"
    if IDS in needs or LATE in needs:
        return "embed_tokens"
    media = [medium for medium in ENCODERS if medium in needs]
    if TEXT not in needs and len(media) == 1:
        return ENCODERS[media[0]]
    if TEXT in needs and not media:
        return "encoder" if generates else "text_encoder"
    if generates:
        return "encoder" if TEXT in needs else "embed_tokens"
    return "classifier"


def cut(whole: ir.Model, needs: Mapping[str, str]) -> dict[str, ir.Model]:
    """The modules of `whole` in the order in which a request meets them, each a model of its own.

    `needs[name]` says for each input that is no weight what a node that reads it depends on: `image`, `video` or
    `audio`; `ids` (tokens that are decoded), `text` (tokens that are only read), or `step`.

    Raises:
        StageError: an input has no such entry, no module is made for a medium, or a length that a module needs cannot
            be known there.
    """
    owned: set[ir.Node] = set()  # Shape nodes whose result has to cross, because no input downstream has the length
    while True:
        parts = _parts(whole.graph, needs, owned)
        for medium, component in ENCODERS.items():
            if medium in needs.values() and component not in parts:
                raise StageError(
                    f"no {component} came out: in a step that has tokens before it the model makes nothing of its "
                    f"{medium} inputs alone, and one graph has to serve the first step and the later ones"
                )
        try:
            return {part.component: _Builder(whole, part).model() for part in _ordered(parts.values())}
        except _UnknownLength as error:
            if error.node in owned:
                raise StageError(str(error)) from error
            owned.add(error.node)


class _UnknownLength(Exception):
    """A module needs the result of a Shape node of another, and none of its own inputs has that length."""

    def __init__(self, node: ir.Node, message: str) -> None:
        super().__init__(message)
        self.node = node


def _parts(graph: ir.Graph, needs: Mapping[str, str], owned: set[ir.Node]) -> dict[str, Part]:
    known: dict[ir.Value, Needs] = {}
    for value in graph.inputs:
        if value.name not in needs:
            raise StageError(f"input {value.name!r} of the whole graph belongs to no module")
        known[value] = frozenset({needs[str(value.name)]})
    generates = IDS in needs.values()
    lengths = _known_lengths(graph, known)
    home: dict[ir.Value, str] = {}
    for node in list(graph):
        if node in owned:
            found = known.get(node.inputs[0], frozenset())  # type: ignore[arg-type]
        else:
            found = _needs(node, known, lengths)
        for output in node.outputs:
            known[output] = found
            home[output] = component_of(found, generates)
    _sink(graph, known, home)
    parts: dict[str, Part] = {}
    for node in list(graph):
        component = home[node.outputs[0]]
        if component:
            parts.setdefault(component, Part(component)).nodes.append(node)
    for value in graph.inputs:
        home[value] = component_of(known[value], generates)
    _draw_borders(graph, parts, home)
    return parts


def _sink(graph: ir.Graph, known: Mapping[ir.Value, Needs], home: dict[ir.Value, str]) -> None:
    """What is in the embedding for its lengths alone goes to the decoder where only that reads it: a small mask
    crosses, not what it becomes.
    """
    for node in reversed(graph):
        if home[node.outputs[0]] == "embed_tokens" and IDS not in known[node.outputs[0]]:
            readers = [home[use.node.outputs[0]] for output in node.outputs for use in output.uses()]
            if set(readers) == {"decoder"} and not any(output.is_graph_output() for output in node.outputs):
                home |= dict.fromkeys(node.outputs, "decoder")


def _known_lengths(graph: ir.Graph, known: Mapping[ir.Value, Needs]) -> dict[str, Needs]:
    """What each length that has a name depends on: nothing where it comes in early and later modules can read it off
    what reaches them.
    """
    order: list[Needs] = [frozenset(), frozenset({LATE}), frozenset({STEP})]
    found: dict[str, Needs] = {}
    for value in graph.inputs:
        own = order[2 if STEP in known[value] else 1 if IDS in known[value] else 0]
        for size in value.shape or ():
            if not isinstance(size, int) and size.value is not None:
                found[size.value] = min(found.get(size.value, own), own, key=order.index)
    return found


def _needs(node: ir.Node, known: Mapping[ir.Value, Needs], lengths: Mapping[str, Needs]) -> Needs:
    if node.domain == MARK_DOMAIN:
        said = node.attributes["needs"].as_string()
        read = any(TEXT in found for found in known.values())
        return known.get(node.inputs[0], frozenset()) | {(TEXT if read else IDS) if said == MERGE else said}  # type: ignore[arg-type]
    if is_shape(node) and _measured(node) is None:
        return known.get(node.inputs[0], frozenset())  # type: ignore[arg-type]
    if is_shape(node):
        names = [name for size in _measured(node) or () if not isinstance(size, int) for name in symbols(size.value)]
        return frozenset().union(*(lengths.get(name, frozenset()) for name in names))
    return frozenset().union(*(known.get(value, frozenset()) for value in _reads(node)))


def is_shape(node: ir.Node) -> bool:
    """Whether a node asks for lengths alone."""
    return node.op_type == "Shape" and node.domain == ""


def symbols(expression: str | None) -> list[str]:
    """The names in a length such as `s0 + 4*s1`; one that has no name depends on nothing that could be told."""
    return re.findall(NAME, expression or "")


def _measured(node: ir.Node) -> list[int | ir.SymbolicDim] | None:
    """The lengths that a Shape node gives; None where the trace does not know them."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None:
        return None
    start = node.attributes["start"].as_int() if "start" in node.attributes else 0
    end = node.attributes["end"].as_int() if "end" in node.attributes else len(shape)
    sizes = [shape[axis] for axis in range(len(shape))[start:end]]
    return None if any(not isinstance(size, int) and size.value is None for size in sizes) else sizes


def _reads(node: ir.Node) -> list[ir.Value]:
    """Inputs of a node and what its subgraphs read of the graph around them."""
    found = [value for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        for graph in [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else []:
            inside = {output for inner in graph for output in inner.outputs} | set(graph.inputs)
            found += [value for inner in graph for value in _reads(inner) if value not in inside]
            found += [value for value in graph.outputs if value not in inside]
    return found


def _draw_borders(graph: ir.Graph, parts: Mapping[str, Part], home: Mapping[ir.Value, str]) -> None:
    """Values that one module makes and another reads, and the ends of the whole."""
    for part in parts.values():
        for node in part.nodes:
            for value in _reads(node):
                where = home.get(value, "")
                if value.is_graph_input():
                    part.inputs[value] = None
                elif where not in ("", part.component) and value.producer() is not None:
                    part.inputs[value] = None
                    parts[where].outputs[value] = None
    for value in graph.outputs:
        where = home[value]
        if where and value.producer() is not None:
            parts[where].outputs[value] = None


def _ordered(parts: Iterable[Part]) -> list[Part]:
    order = [*ENCODERS.values(), "text_encoder", "encoder", "embed_tokens", "decoder", "classifier"]
    return sorted(parts, key=lambda part: order.index(part.component))


class _Builder:
    """Copies the nodes of one part, and what they need that depends on nothing, into a graph of its own."""

    def __init__(self, whole: ir.Model, part: Part) -> None:
        self.whole, self.part = whole, part
        self.copies: dict[ir.Value | None, ir.Value | None] = {None: None}
        self.inputs: list[ir.Value] = []
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}

    def model(self) -> ir.Model:
        """The part as a model; weights stay initialisers without values."""
        for value in self.part.inputs:
            self._take(value)
        for node in self.part.nodes:
            if node.outputs[0] not in self.copies:  # a length may have been asked for before its turn
                self._copy(node)
        outputs = [self._output(value) for value in self.part.outputs]
        graph = ir.Graph(
            self.inputs,
            outputs,
            nodes=self.nodes,
            initializers=tuple(self.initializers.values()),
            opset_imports=dict(self.whole.graph.opset_imports),
            name=self.part.component,
        )
        return ir.Model(graph, ir_version=self.whole.ir_version)

    def _take(self, value: ir.Value) -> ir.Value:
        copy = ir.Value(name=value.name, shape=value.shape, type=value.type)
        self.copies[value] = copy
        self.inputs.append(copy)
        return copy

    def _output(self, value: ir.Value) -> ir.Value:
        copy = self.copies[value]
        assert copy is not None
        if copy.is_graph_input() or copy in self.inputs:
            node = ir.node("Identity", [copy], name=f"{copy.name}_same")
            node.outputs[0].shape, node.outputs[0].type = copy.shape, copy.type
            node.outputs[0].name = f"{copy.name}_same"
            self.nodes.append(node)
            copy = node.outputs[0]
        return copy

    def _copy(self, node: ir.Node) -> None:
        if node.domain == MARK_DOMAIN:
            self.copies[node.outputs[0]] = self._here(node.inputs[0])
            return
        for value in _reads(node):
            self._here(value)
        inputs = [self._here(value) for value in node.inputs]
        copy = ir.Node(
            node.domain, node.op_type, inputs, attributes=self._attributes(node), overload=node.overload,
            num_outputs=len(node.outputs), name=node.name, version=node.version,
        )  # fmt: skip
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name, new.shape, new.type, new.const_value = old.name, old.shape, old.type, old.const_value
            self.copies[old] = new
        self.nodes.append(copy)

    def _attributes(self, node: ir.Node) -> list[ir.Attr]:
        if any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
            raise StageError(f"{self.part.component}: control flow ({node.op_type}) cannot be cut")
        return list(node.attributes.values())

    def _here(self, value: ir.Value | None) -> ir.Value | None:
        """This module's own copy of a value: taken, made here, or depending on weights and lengths alone."""
        if value in self.copies:
            return self.copies[value]
        assert value is not None
        producer = value.producer()
        if value.is_initializer() or producer is None:
            copy = ir.Value(name=value.name, shape=value.shape, type=value.type, const_value=value.const_value)
            self.initializers[str(value.name)] = copy
            self.copies[value] = copy
            return copy
        if is_shape(producer) and producer.inputs[0] not in self.copies and _measured(producer) is not None:
            self._copy_lengths(producer)
        else:
            self._copy(producer)
        return self.copies[value]

    def _copy_lengths(self, node: ir.Node) -> None:
        """Lengths of a tensor that is elsewhere, read off this module's inputs."""
        try:
            parts = [self._length(size) for size in _measured(node) or ()]
        except KeyError as error:
            known = ", ".join(f"{value.name} {value.shape}" for value in self.inputs)
            message = f"{self.part.component}: no input has the length {error} ({known})"
            raise _UnknownLength(node, message) from error
        if not parts:
            raise _UnknownLength(node, f"{self.part.component}: the shape of {node.inputs[0]} is unknown")
        self.copies[node.outputs[0]] = parts[0] if len(parts) == 1 else self._node("Concat", parts, axis=0)

    def _node(self, kind: str, inputs: Sequence[ir.Value], **attributes: int) -> ir.Value:
        """A node over int64 lists whose one output is an int64 list."""
        node = ir.node(kind, inputs, attributes, name=f"length_{len(self.nodes)}")
        [output] = node.outputs
        output.name, output.type = f"length_{len(self.nodes)}", ir.TensorType(ir.DataType.INT64)
        self.nodes.append(node)
        return output

    def _constant(self, number: int) -> ir.Value:
        name = f"length_of_{number}"
        tensor = ir.tensor([number], ir.DataType.INT64, name=name)
        kind = ir.TensorType(ir.DataType.INT64)
        return self.initializers.setdefault(
            name, ir.Value(name=name, const_value=tensor, shape=ir.Shape([1]), type=kind)
        )

    def _length(self, size: int | ir.SymbolicDim) -> ir.Value:
        """A one-element list that holds a length.

        Raises:
            KeyError: it is made of lengths that no input of this module has.
        """
        if isinstance(size, int):
            return self._constant(size)
        for value in self.inputs:
            for axis, length in enumerate(value.shape or ()):
                if not isinstance(length, int) and length.value == size.value and size.value is not None:
                    return self._node("Shape", [value], start=axis, end=axis + 1)
        try:
            tree = ast.parse(str(size.value), mode="eval").body
        except SyntaxError as error:
            raise KeyError(str(size.value)) from error
        return self._evaluate(tree)

    def _evaluate(self, tree: ast.expr) -> ir.Value:
        """Arithmetic over lengths, such as `s0 + 4*s1`.

        Raises:
            KeyError: a name that no input has, or an operator that has no node.
        """
        if isinstance(tree, ast.Constant) and isinstance(tree.value, int):
            return self._constant(tree.value)
        if isinstance(tree, ast.BinOp) and type(tree.op) in _OPERATORS:
            left, right = self._evaluate(tree.left), self._evaluate(tree.right)
            if isinstance(tree.op, ast.FloorDiv):  # a node rounds towards zero
                left = self._node("Sub", [left, self._node("Mod", [left, right])])
            return self._node(_OPERATORS[type(tree.op)], [left, right])
        if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
            return self._node("Neg", [self._evaluate(tree.operand)])
        if isinstance(tree, ast.Call) and ast.unparse(tree.func) in _FUNCTIONS:
            return self._node(_FUNCTIONS[ast.unparse(tree.func)], [self._evaluate(part) for part in tree.args])
        if not isinstance(tree, ast.Name) or not self._has(tree.id):
            raise KeyError(ast.unparse(tree))
        return self._length(ir.SymbolicDim(tree.id))

    def _has(self, name: str) -> bool:
        sizes = (size for value in self.inputs for size in value.shape or ())
        return any(not isinstance(size, int) and size.value == name for size in sizes)
