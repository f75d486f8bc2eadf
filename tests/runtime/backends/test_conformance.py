"""What we touch of TensorRT's objects exists in TensorRT 10.3, 10.16 and 11.4 and in TensorRT-RTX, or is probed.

The uses are found in the source: a name such as `config` always stands for one class of the library there, which
`CLASSES` says and `test_no_use_escapes` holds it to. `data/tensorrt-api.json` has, for these classes, the members that
the wheels of each version have. Of 10.3, which JetPack 6 has, it has the names among them that its bindings contain at
all: what is missing there is missing, what is there may belong to another class.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from msao_compile.runtime.backends import trt_build

FOLDER = Path(trt_build.__file__).parent
FILES = ("trt_build.py", "trt_library.py", "trt.py", "trt_state.py")
API = json.loads((Path(__file__).parent / "data" / "tensorrt-api.json").read_text())
CLASSES = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "config": "IBuilderConfig",
    "profile": "IOptimizationProfile", "tensor": "ITensor", "layer": "ILayer", "attention": "IAttention",
    "error": "ParserError", "plan": "IHostMemory", "timings": "ITimingCache", "runtime": "Runtime",
    "engine": "ICudaEngine", "context": "IExecutionContext", "runtime_config": "IRuntimeConfig",
    "runtime_cache": "IRuntimeCache",
}  # fmt: skip
# Asked for by one name, which stands for the others: a version has all or none. And what is used where one is absent.
TOGETHER = {
    "set_compute_capability": {"num_compute_capabilities", "ComputeCapability"},
    "IRuntimeCache": {"create_runtime_cache", "set_runtime_cache", "serialize", "deserialize"},
    "create_runtime_config": {"set_execution_context_allocation_strategy"},
    "get_engine_stat": {"EngineStat"},
}
INSTEAD = {"supports_model_v2": "supports_model", "set_device_memory": "device_memory",
           "get_device_memory_size_for_profile_v2": "device_memory_size"}  # fmt: skip
# Names of ours that happen to have members called as the library's are.
OURS = {"self", "state", "spec", "one", "path", "value", "severity", "np"}


def trees() -> Iterator[tuple[str, ast.Module]]:
    for name in FILES:
        yield name, ast.parse((FOLDER / name).read_text())


def root(node: ast.expr) -> str | None:
    """The name that an expression is a member of: `config` of `config.x`, and of `self._engine.x` it is `engine`."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr.lstrip("_")
    return None


def uses(tree: ast.Module) -> Iterator[tuple[str, str, int]]:
    """Class, member and line of every use of an object of the library; class "" is the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not isinstance(node.value, ast.Call):
            owner = root(node.value)
            if isinstance(node.value, ast.Name) and owner == "lib":
                yield "", node.attr, node.lineno
            elif isinstance(node.value, ast.Attribute) and root(node.value.value) == "lib":
                yield node.value.attr, node.attr, node.lineno
            elif owner in CLASSES:
                yield CLASSES[owner], node.attr, node.lineno


def probed(tree: ast.Module) -> set[str]:
    """Members that the file asks for with `hasattr` before it uses them, and those that this decides."""
    asked = asked_for(tree)
    return asked.union(*(TOGETHER.get(name, set()) for name in asked), {INSTEAD[name] for name in asked & set(INSTEAD)})


def asked_for(tree: ast.Module) -> set[str]:
    return {
        node.args[1].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and root(node.func) == "hasattr"
        and isinstance(node.args[1], ast.Constant)
        and isinstance(node.args[1].value, str)
    }


def lacking(api: dict[str, list[str]], tree: ast.Module) -> list[str]:
    """What is used and neither there nor probed."""
    asked = probed(tree)
    return [
        f"line {line}: {owner or 'module'}.{member}"
        for owner, member, line in uses(tree)
        if member not in {*api.get(owner, ()), *asked} and not member.startswith("__") and owner not in asked
    ]


@pytest.mark.parametrize("version", sorted(API))
@pytest.mark.parametrize("name", FILES)
def test_every_use_exists_or_is_probed(name: str, version: str) -> None:
    assert lacking(API[version], dict(trees())[name]) == []


@pytest.mark.parametrize("name", FILES)
def test_every_use_exists_in_the_library_that_is_installed(name: str) -> None:
    lib = pytest.importorskip("tensorrt_rtx")
    api = {"": dir(lib), **{owner: dir(getattr(lib, owner)) for owner in dir(lib)}}
    assert lacking(api, dict(trees())[name]) == []


@pytest.mark.parametrize("name", FILES)
def test_what_is_probed_exists_somewhere(name: str) -> None:
    known = {member for api in API.values() for members in api.values() for member in members}
    lib = pytest.importorskip("tensorrt_rtx")  # the wheels' list lacks what only casts give
    known |= {member for owner in (lib.IAttentionInputLayer, lib.IAttention) for member in dir(owner)}
    assert asked_for(dict(trees())[name]) - known == set()


@pytest.mark.parametrize("version", sorted(API))
def test_what_is_asked_for_decides_what_it_stands_for(version: str) -> None:
    there = {member for members in API[version].values() for member in members}
    own = {*API[version].get("IRuntimeCache", ()), *API[version].get("IRuntimeConfig", ()), *there} - {"serialize", ""}
    for name, others in TOGETHER.items():
        assert {member in own for member in others - {"serialize", "deserialize"}} == {name in there}
    assert all({new, old} & there for new, old in INSTEAD.items())


def test_no_use_escapes() -> None:
    """A member of the library's is used of a name that we know, of the library's or our own."""
    members = {member for api in API.values() for owner in CLASSES.values() for member in api.get(owner, ())}
    strange = [
        f"{name}:{node.lineno} {ast.unparse(node)}"
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in members and root(node.value) not in {*CLASSES, *OURS, None}
    ]
    assert strange == []


def test_what_the_library_gives_is_kept_under_a_name_that_is_looked_at() -> None:
    """`x = config.get_timing_cache()` would hide uses of x: names that hold objects of the library are in CLASSES."""
    makers = {"create_", "deserialize_", "build_serialized", "get_timing_cache", "get_layer", "get_input", "get_error"}
    strange = [
        f"{name}:{node.lineno} {ast.unparse(target)}"
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        if isinstance(node.value.func, ast.Attribute) and node.value.func.attr.startswith(tuple(makers))
        for target in node.targets
        if root(target) not in CLASSES
    ]
    assert strange == []


def test_a_use_that_a_version_lacks_is_found() -> None:
    tree = ast.parse("config.set_compute_capability(1, 0)\nself._engine.load_weights(b'')\nlib.ComputeCapability.SM89")
    assert sorted(lacking(API["tensorrt 11.4"], tree)) == [
        "line 1: IBuilderConfig.set_compute_capability",
        "line 2: ICudaEngine.load_weights",
        "line 3: ComputeCapability.SM89",
        "line 3: module.ComputeCapability",
    ]
    probing = "if hasattr(config, 'set_compute_capability'):\n    config.set_compute_capability(1, 0)"
    assert lacking(API["tensorrt 11.4"], ast.parse(probing)) == []
    assert lacking(API["tensorrt_rtx 1.7"], tree) == []
