"""What costs seconds and is shared by the whole session: tiny checkpoints, and one build of each family."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import building
import checkpoints
import numpy as np
import pytest
import torch
from building import Workshop, write_recipe
from hypothesis import HealthCheck, settings
from PIL import Image

Checkpoint = Callable[..., Path]
# Warnings would fill the pipe, which is read at the end only.
CODE = "import logging, sys, building; logging.disable(logging.WARNING); building.build_here(*sys.argv[1:])"

WAITS = {"others", "built"}
"""Fixtures of what is built in processes beside the tests."""


def pytest_configure() -> None:
    """Ctrl-C reaches the tests of it even where this shell started us with SIGINT ignored, as `nohup ... &` does; and
    no example fails because the machine is slow. Several threads would wait for each other longer than they work on
    tiny models, many times as long where the processors have other work as well."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any machine")
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of tests that wait for builds beside them come last: then those are done, and nobody waits."""
    waiting = {item.path for item in items if WAITS & set(getattr(item, "fixturenames", ()))}
    items.sort(key=lambda item: item.path in waiting)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """`checkpoint(family, spelling="saved")`: a tiny checkpoint, made once; nobody writes to it."""
    root = tmp_path_factory.mktemp("checkpoints")

    def made(family: str, spelling: str = "saved") -> Path:
        folder = root / f"{family}-{spelling}"
        return folder if folder.is_dir() else checkpoints.write(family, folder, spelling)

    return made


@pytest.fixture(scope="session")
def workshop(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint, request: pytest.FixtureRequest
) -> Workshop:
    """A store in which the tiny Idefics3 was built in both dialects, each stage in a process of its own."""
    if any(WAITS & set(getattr(item, "fixturenames", ())) for item in request.session.items):
        request.getfixturevalue("started")  # what will be asked for later is built beside this
    made = Workshop(tmp_path_factory.mktemp("workshop"))
    made.build(write_recipe(made.folder / "tiny.toml", {"edge": (checkpoint("idefics3"), "draft")}))
    return made


@pytest.fixture(scope="session")
def deployment(workshop: Workshop) -> Path:
    """The tiny Idefics3's deployment; nobody writes to it."""
    return workshop.options.out / "tiny"


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture file with something in it."""
    path = tmp_path_factory.mktemp("pictures") / "ramp.png"
    ramp = np.arange(96 * 64 * 3, dtype=np.uint32).reshape(64, 96, 3) % 251
    Image.fromarray(ramp.astype(np.uint8)).save(path)
    return path


@pytest.fixture
def copy(deployment: Path, tmp_path: Path) -> Path:
    """A copy of the deployment to damage; real copies, so that the store stays whole."""
    return Path(shutil.copytree(deployment, tmp_path / "copy"))


@pytest.fixture(scope="session")
def started(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint
) -> Iterator[dict[str, tuple[Path, subprocess.Popen[str]]]]:
    """Builds of the other families under way, in a process each: where the deployment will be, and the process."""
    made, code = (
        Workshop(tmp_path_factory.mktemp("families")),
        CODE,
    )
    recipes = {}
    for family in ("llava", "qwen2_5_vl", "clip", "whisper"):
        models = {"edge": (checkpoint(family), "draft")}
        recipes[family] = write_recipe(made.folder / f"{family}.toml", models, weights="original")
    under_way = {
        family: (made.options.out / family, building.start(code, recipe, made.folder))
        for family, recipe in recipes.items()
    }
    yield under_way
    for _, process in under_way.values():
        process.kill()


@pytest.fixture(scope="session")
def others(started: dict[str, tuple[Path, subprocess.Popen[str]]]) -> dict[str, Path]:
    """Deployments of the other families; nobody writes to them."""
    for done in [building.finish(process) for _, process in started.values()]:
        assert done.returncode == 0, done.stderr
    return {family: folder for family, (folder, _) in started.items()}


@pytest.fixture(scope="session")
def built(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """`built(family)`: the deployment of a family's tiny checkpoint in both dialects; nobody writes to it."""

    def folder(family: str) -> Path:
        if family == "idefics3":
            return Path(request.getfixturevalue("deployment"))
        return Path(request.getfixturevalue("others")[family])

    return folder
