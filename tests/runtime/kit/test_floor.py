"""What a kit carries runs on a device with Python 3.10, NumPy and its engine library, and nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

PYTHON = (3, 10)
ABSENT = ("pydantic", "typer", "rich", "jinja2", "tokenizers", "PIL", "onnx", "onnx_ir", "torch", "transformers",
          "onnxruntime", "tensorrt", "tensorrt_rtx", "cryptography", "zstandard")  # fmt: skip
NEWER = {"tomllib", "StrEnum", "Self", "file_digest", "ExceptionGroup", "TaskGroup", "chdir", "UTC", "batched"}
"""Names that came to the standard library after Python 3.10."""


def sources(kit: Path) -> list[Path]:
    found = [*kit.glob("*.py"), *kit.rglob("msao_compile/**/*.py")]
    assert len(found) > 15
    return found


def test_every_file_is_written_in_the_python_of_the_device(packed_kit: Path) -> None:
    for path in sources(packed_kit):
        tree = ast.parse(path.read_text(), feature_version=PYTHON)
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        used |= {
            name.name for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for name in node.names
        }
        assert not used & NEWER, path
        assert not [node for node in ast.walk(tree) if type(node).__name__ == "TryStar"], path


def test_every_file_is_imported_where_nothing_but_numpy_is_installed(packed_kit: Path) -> None:
    names = [".".join(path.relative_to(packed_kit).with_suffix("").parts) for path in sources(packed_kit)]
    code = f"import sys, importlib\nsys.modules.update(dict.fromkeys({ABSENT}))\nsys.path.insert(0, sys.argv[1])\n"
    code += "for name in sys.argv[2:]: importlib.import_module(name.removesuffix('.__init__'))\n"
    code += "import msao_compile; assert msao_compile.__file__.startswith(sys.argv[1])"
    done = subprocess.run([sys.executable, "-P", "-c", code, str(packed_kit), *names], capture_output=True, text=True,
                          cwd="/", env={}, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
