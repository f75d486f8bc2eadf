"""A device has its own Python 3.10, NumPy and TensorRT: what a kit copies needs nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import msao_compile
from msao_compile.runtime.backends import cuda

FOLDER = Path(cuda.__file__).parent
COPIED = ("cuda.py", "engine_file.py", "trt.py", "trt_build.py", "trt_library.py", "trt_state.py")
ABSENT = ("pydantic", "torch", "onnx", "onnx_ir", "onnxruntime", "tokenizers", "PIL", "transformers", "jinja2", "rich")
AFTER_3_10 = {"tomllib", "asyncio.TaskGroup", "datetime.UTC", "enum.StrEnum", "typing.Self", "typing.assert_never",
              "typing.override", "itertools.batched", "hashlib.file_digest", "contextlib.chdir"}  # fmt: skip
PACKAGE = "msao_compile.runtime.backends."


@pytest.mark.parametrize("name", COPIED)
def test_it_is_python_3_10(name: str) -> None:
    tree = ast.parse((FOLDER / name).read_text(), feature_version=(3, 10))
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            used |= {f"{node.module}.{one.name}" for one in node.names}
        elif isinstance(node, ast.Import):
            used |= {one.name for one in node.names}
    assert used & AFTER_3_10 == set()


@pytest.mark.parametrize("name", COPIED)
def test_it_imports_the_standard_library_numpy_errors_and_what_is_copied_with_it(name: str) -> None:
    own = {PACKAGE + file.removesuffix(".py") for file in COPIED}
    tree = ast.parse((FOLDER / name).read_text())
    checking = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    skipped = {id(inner) for node in checking for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            whole = node.module or ""
            names = [f"{whole}.{one.name}" for one in node.names] if whole + "." == PACKAGE else [whole]
        for module in names:
            top = module.split(".")[0]
            known = top in sys.stdlib_module_names or top in ("numpy", "tensorrt", "tensorrt_rtx")
            assert known or module == "msao_compile.errors" or module in own, f"{name} imports {module}"


def test_it_is_imported_with_everything_else_poisoned() -> None:
    modules = [PACKAGE + name.removesuffix(".py") for name in COPIED]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({(*ABSENT, 'tensorrt', 'tensorrt_rtx')}))\n"
        f"import importlib; [importlib.import_module(name) for name in {modules}]\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'numpy', 'pydantic'}))"
    )
    root = Path(msao_compile.__file__).parents[1]
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert ran.stderr == ""
    assert ran.stdout == "['numpy', 'pydantic']\n"  # the poison itself is there


def test_the_copies_alone_are_a_package_that_builds(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    package = tmp_path / "msao_compile" / "runtime" / "backends"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    (package.parent.parent / "errors.py").write_bytes(Path(msao_compile.__file__).with_name("errors.py").read_bytes())
    for name in COPIED:
        (package / name).write_bytes((FOLDER / name).read_bytes())
    from trt_graphs import encoder_profile, facts, order, write_encoder

    graph = write_encoder(tmp_path)
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({ABSENT})); sys.path.insert(0, '.')\n"
        "from pathlib import Path\nfrom msao_compile.runtime.backends import trt, trt_build\n"
        f"told = trt_build.build(Path({str(graph)!r}), {order([encoder_profile()])!r}, Path('x.engine'), "
        f"{facts('encoder')!r})\nprint(told['profiles'])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.returncode) == ("['encode']\n", 0), ran.stderr
