"""Write a model repository for NVIDIA Triton: one Python-backend model that serves a deployment's cloud model."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from msao_compile.errors import InputError
from msao_compile.manifest.schema import MANIFEST_NAME, Deployment, Model
from msao_compile.runtime.loader import read_manifest
from msao_compile.runtime.serve.cloud.opening import cloud_model, prefill_inputs
from msao_compile.runtime.serve.triton.config import config_text
from msao_compile.runtime.serve.triton.place import DEPLOYMENT, MODEL_NAME
from msao_compile.store.files import translated

MODEL = '''"""What Triton's Python backend loads; msao-compile has to be installed for the Python that Triton runs."""

from msao_compile.runtime.serve.triton.model import DeploymentInTriton as TritonPythonModel  # noqa: F401
'''


def write_repository(deployment: Path, model: str | None, out: Path) -> Path:
    """Write `out`, a model repository that holds the deployment; its files are linked where the disk can. The model's
    folder is given.

    Raises:
        InputError: `out` holds something already, or the deployment has no such model. DeploymentError: it cannot be
            used. StageError: writing failed.
    """
    manifest = read_manifest(deployment)
    chosen = cloud_model(manifest, model)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} holds something already: give a new folder, or remove it first")
    fresh = out.with_name(f".{out.name}.new")
    with translated("writing the model repository", out):
        shutil.rmtree(fresh, ignore_errors=True)  # of a process that was killed
        try:
            _fill(fresh / chosen.name, deployment, manifest, chosen)
            if out.exists():
                out.rmdir()
            fresh.rename(out)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)  # half a repository would go on filling the disk
    return out / chosen.name


def _fill(folder: Path, deployment: Path, manifest: Deployment, chosen: Model) -> None:
    version = folder / "1"
    version.mkdir(parents=True)
    for path in (MANIFEST_NAME, *manifest.all_files()):
        _link(deployment / path, version / DEPLOYMENT / path)
    (version / MODEL_NAME).write_text(chosen.name + "\n")
    (version / "model.py").write_text(MODEL)
    (folder / "config.pbtxt").write_text(config_text(chosen.name, prefill_inputs(manifest, chosen)))


def _link(source: Path, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, destination)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, destination)
