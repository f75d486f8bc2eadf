"""The two TensorRT libraries: imported when asked for, their messages kept, their parser's verdicts on a graph."""

from __future__ import annotations

import logging
import re
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msao_compile.errors import MissingTool, StageError
from msao_compile.runtime.backends import cuda, engine_file

EXTRAS = {"trt": "tensorrt", "trt_rtx": "rtx"}
KEPT_MESSAGES = 64
PORTABLE, QDQ = "dialect portable", "precision int8 (explicit QuantizeLinear and DequantizeLinear)"
# Operators that only another backend or a newer parser knows, and what to ask the recipe for instead.
ADVICE = {
    **dict.fromkeys(("FusedMatMul", "GroupQueryAttention", "MultiHeadAttention", "SkipLayerNormalization"), PORTABLE),
    **dict.fromkeys(("SkipSimplifiedLayerNormalization", "SimplifiedLayerNormalization", "BiasGelu"), PORTABLE),
    **dict.fromkeys(("FusedGemm", "FusedConv", "QuickGelu", "FastGelu", "Gelu", "RotaryEmbedding"), PORTABLE),
    **dict.fromkeys(("Attention", "RMSNormalization", "TensorScatter", "Swish", "MatMulNBits"), PORTABLE),
    **dict.fromkeys(("MatMulInteger", "ConvInteger", "DynamicQuantizeLinear", "DynamicQuantizeMatMul"), QDQ),
}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NodeVerdict:
    """A node that the parser refuses. `advice` is the dialect or precision that would work, empty where unknown."""

    node: str
    operator: str
    reason: str
    code: str
    advice: str = ""


def library(backend: str) -> Any:
    """The library of a backend, imported now.

    Raises:
        MissingTool: it is not installed or does not load; names the extra.
    """
    if backend not in EXTRAS:
        raise MissingTool(f"backend {backend!r} builds no engines; known: {', '.join(EXTRAS)}")
    try:
        if backend == "trt":
            import tensorrt as lib
        else:
            import tensorrt_rtx as lib
    except (ImportError, OSError) as error:
        raise MissingTool(
            f"backend {backend!r} needs {engine_file.NAMES[backend]}, which does not load here "
            f"({str(error).splitlines()[0]}): pip install 'msao-compile[{EXTRAS[backend]}]'"
        ) from error
    return lib


class Messages:
    """What a library says while it works: its faults are kept, the rest goes to our log."""

    def __init__(self) -> None:
        self.faults: deque[str] = deque(maxlen=KEPT_MESSAGES)
        self.warnings: deque[str] = deque(maxlen=KEPT_MESSAGES)

    def take(self, severity: str, text: str) -> None:
        """One message; libraries call this from several threads."""
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self.faults.append(text)
        elif severity == "WARNING":
            self.warnings.append(text)
        logger.debug("%s %s", severity, text)

    def reason(self) -> str:
        """Its faults in one line, without what it says of a machine that has no GPU."""
        told = [plain(text) for text in self.faults]
        return "; ".join(dict.fromkeys(text for text in told if text)) or "it gave no reason"


def plain(text: str) -> str:
    """A message in one line, without the library's source files and what it says of a machine that has no GPU."""
    text = re.sub(r"(?:\[\S+::\d+\] )?Error Code \d+: Cuda Runtime \(.*", "", " ".join(text.split()))
    return re.sub(r"^(?:\[\S+::\d+\] |\S+\.cpp:\d+: )|\[\S+::\d+\] $", "", text).strip()


def listen(lib: Any, messages: Messages) -> Any:
    """A logger of the library that fills `messages`."""

    class Listener(lib.ILogger):  # type: ignore[misc]  # a class of a library that is there or not
        def __init__(self) -> None:
            lib.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            messages.take(severity.name, text)

    return Listener()


def verdicts(graph: Path, backend: str) -> list[NodeVerdict]:
    """Every node of a graph that the library's parser refuses, without building; none where it takes all of it.

    Raises:
        MissingTool: the library is absent, or wants a GPU that is not here.
    """
    lib = library(backend)
    if not builds_ahead_of_time(lib):
        needed_driver(backend)
    messages = Messages()
    network, parser = open_parser(lib, messages)[1:]
    content = graph.read_bytes()
    if hasattr(parser, "supports_model_v2"):
        fine = parser.supports_model_v2(content, str(graph))
    else:
        fine = parser.supports_model(content, str(graph))[0]
    del network
    found = [] if fine else refusals(parser)
    return found or ([] if fine else [NodeVerdict("", "", messages.reason(), "UNKNOWN")])


def refusals(parser: Any) -> list[NodeVerdict]:
    found = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        operator = error.node_operator()
        node, code = error.node_name() or f"number {error.node()}", error.code().name
        found.append(NodeVerdict(node, operator, plain(error.desc()), code, ADVICE.get(operator, "")))
    return found


def builds_ahead_of_time(lib: Any) -> bool:
    """Whether the library builds for GPUs that are not here."""
    return hasattr(lib, "ComputeCapability")


def needed_driver(backend: str) -> cuda.Driver:
    """The driver of the GPU that is built for.

    Raises:
        MissingTool: there is none.
    """
    found = cuda.probe()
    if isinstance(found, str):
        raise MissingTool(f"{engine_file.NAMES[backend]} needs here the GPU that it builds for, and {found}")
    return found


def open_parser(lib: Any, messages: Messages) -> tuple[Any, Any, Any]:
    """A builder, an empty strongly typed network, and a parser that fills it."""
    listener = listen(lib, messages)
    try:
        builder = lib.Builder(listener)
    except TypeError as error:  # what the bindings make of a null pointer
        raise StageError(f"the builder does not start: {messages.reason()}") from error
    flags = 0
    if hasattr(lib.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        flags |= 1 << int(lib.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    return builder, network, lib.OnnxParser(network, listener)
