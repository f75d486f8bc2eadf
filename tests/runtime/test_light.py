"""What the device installs is enough: the runtime runs with every compile library poisoned, and starts lazily."""

from __future__ import annotations

import inspect
from pathlib import Path

from building import ROOT, python

COMPILE_LIBRARIES = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "optimum", "safetensors")
POISON = f"import sys; sys.modules.update(dict.fromkeys({COMPILE_LIBRARIES}))\n"


def modules_of(*rooms: str) -> list[str]:
    package = ROOT / "msao_compile"
    files = [path for room in rooms for path in (package / room).rglob("*.py")]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]
    return sorted(name.removesuffix(".__init__") for name in names)


def test_every_runtime_and_manifest_file_is_imported_without_compile_libraries() -> None:
    names = modules_of("runtime", "manifest")
    assert len(names) > 20
    done = python(POISON + "import importlib\nfor name in sys.argv[1:]: importlib.import_module(name)", *names)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_deployment_answers_without_compile_libraries(deployment: Path, picture: Path) -> None:
    code = (
        "from msao_compile.runtime import load\nprint(load(sys.argv[1]).generate('what?', image=sys.argv[2]).token_ids)"
    )
    done = python(POISON + code, deployment, picture)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(")


def test_the_poison_works() -> None:
    done = python(POISON + "import msao_compile.stages.split")
    assert "ModuleNotFoundError: import of torch halted" in done.stderr


def test_importing_the_runtime_imports_neither_numpy_nor_pydantic() -> None:
    heavy = "{'numpy', 'pydantic', 'onnxruntime', 'PIL', 'tokenizers'}"
    code = f"import sys, msao_compile.runtime\nprint({heavy} & set(sys.modules))"
    assert python(code).stdout == "set()\n"


def test_the_lazy_names_are_the_real_ones() -> None:
    from msao_compile import runtime
    from msao_compile.runtime import answer, api, policy

    homes = {"Answer": answer.Answer, "Piece": answer.Piece, "Timing": answer.Timing, "Runtime": api.Runtime,
             "Wishes": policy.Wishes}  # fmt: skip
    assert {name: getattr(runtime, name) for name in homes} == homes
    assert {*homes, "load"} == set(runtime.__all__)
    assert inspect.signature(runtime.load) == inspect.signature(api.load)
