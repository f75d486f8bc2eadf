"""What costs seconds and is shared by the whole session: tiny checkpoints, and one build of each family."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import building
import checkpoints
import numpy as np
import pytest
from building import Workshop, write_recipe
from PIL import Image

Checkpoint = Callable[..., Path]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """`checkpoint(family, spelling="saved")`: a tiny checkpoint, made once; nobody writes to it."""
    root = tmp_path_factory.mktemp("checkpoints")

    def made(family: str, spelling: str = "saved") -> Path:
        folder = root / f"{family}-{spelling}"
        return folder if folder.is_dir() else checkpoints.write(family, folder, spelling)

    return made


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint) -> Workshop:
    """A store in which the tiny Idefics3 was built in both dialects, each stage in a process of its own."""
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
def built(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint, deployment: Path
) -> Iterator[Callable[[str], Path]]:
    """`built(family)`: the deployment of a family's tiny checkpoint, both dialects.

    All but Idefics3 run their stages in this process: a child for each would spend its time on importing torch.
    """
    made = Workshop(tmp_path_factory.mktemp("families"), jobs=1)

    def build(family: str) -> Path:
        folder = made.options.out / family
        if family == "idefics3":
            return deployment
        if not folder.is_dir():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("msao_compile.runner.run_job", building.run_here)
                made.build(write_recipe(made.folder / f"{family}.toml", {"edge": (checkpoint(family), "draft")}))
        return folder

    return build
