"""Builds that end in the middle: killed, interrupted, out of disk, two at once. The next one completes what is left."""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from building import ROOT, Workshop, command, run, write_recipe

from msao_compile.manifest.schema import Deployment
from msao_compile.runtime.loader import read_manifest, verify
from msao_compile.store.store import Store

pytestmark = pytest.mark.whole
Checkpoint = Callable[..., Path]
LIMIT_S = 300


@pytest.fixture
def fresh(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


@pytest.fixture
def recipe(fresh: Workshop, checkpoint: Checkpoint) -> Path:
    return write_recipe(fresh.folder / "tiny.toml", {"edge": (checkpoint("idefics3"), "draft")})


@contextmanager
def building(recipe: Path, workshop: Workshop) -> Iterator[subprocess.Popen[str]]:
    """A build under way; whatever the test does, it is gone at the end."""
    process = subprocess.Popen(
        command("build", recipe, workshop=workshop), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen[str], moment: str) -> None:
    """Read what the build tells until it tells of `moment`."""
    told = []
    for line in process.stderr or ():
        told.append(line)
        if line.startswith(moment):
            return
    raise AssertionError(f"the build ended before {moment!r}: {told}")


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ended(pid: int) -> bool:
    """Whether a process ends in time; it is not ours to wait for."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], LIMIT_S)[0])
    finally:
        os.close(handle)


def graphs_and_weights(manifest: Deployment) -> dict[str, str]:
    return {path: ref.sha256 for path, ref in manifest.all_files().items() if not path.startswith("evidence/")}


def check_whole(workshop: Workshop, deployment: Path) -> None:
    """What was built in pieces is what is built at once."""
    folder = workshop.options.out / "tiny"
    manifest = read_manifest(folder)
    verify(folder, manifest)
    assert graphs_and_weights(manifest) == graphs_and_weights(read_manifest(deployment))
    assert Store(workshop.options.store).verify() == []
    assert [path for path in (workshop.options.store / "workspaces").iterdir() if path.is_dir()] == []


def forget(workshop: Workshop, shared: Workshop, kinds: Sequence[str]) -> None:
    """A copy of the shared store that knows nothing of some stages; the objects only they made are gone too."""
    shutil.copytree(shared.options.store, workshop.options.store, dirs_exist_ok=True)
    store = Store(workshop.options.store)
    digests = {record.digest for folder in (store.root / "records").iterdir() if folder.name not in kinds
               for record in store.records(folder.name)}  # fmt: skip
    store.collect(digests)


def test_a_build_that_is_killed_again_and_again_completes(fresh: Workshop, recipe: Path, deployment: Path) -> None:
    for moment in (
        "split edge started",
        "split edge …",
        "load edge/decoder",
        "export edge/embed_tokens (fused)",
        "export edge/decoder",
    ):
        with building(recipe, fresh) as process:
            wait_for(process, moment)
            stages = children(process.pid)
            process.send_signal(signal.SIGKILL)
            assert process.wait(LIMIT_S) == -signal.SIGKILL
            assert all(ended(pid) for pid in stages)
        assert not (fresh.options.out / "tiny" / "deployment.json").exists()
    done = run("build", recipe, workshop=fresh)
    assert done.returncode == 0, done.stderr
    assert "load" not in done.stderr  # finished before a kill, so not done again
    check_whole(fresh, deployment)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_exits_130_and_the_next_one_continues(
    fresh: Workshop, recipe: Path, workshop: Workshop, deployment: Path, number: signal.Signals
) -> None:
    forget(fresh, workshop, ("load", "parity", "build", "measure"))
    with building(recipe, fresh) as process:
        wait_for(process, "parity edge started")
        stages = children(process.pid)
        process.send_signal(number)
        _, told = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 130, told
    assert told.splitlines()[-1].startswith("error: interrupted")
    assert "msao_compile.stages" not in told
    assert all(ended(pid) for pid in stages)
    done = run("build", recipe, "--json", workshop=fresh)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["reused"] == 7 + 3  # split and export, and the loads that were finished
    check_whole(fresh, deployment)


def test_two_builds_at_once_do_every_stage_once(
    fresh: Workshop, recipe: Path, workshop: Workshop, deployment: Path
) -> None:
    forget(fresh, workshop, ("load", "parity", "build", "measure"))
    words = command("build", recipe, "--json", workshop=fresh)
    both = [
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)
    ]
    ended = [process.communicate(timeout=LIMIT_S) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    facts = [json.loads(out) for out, _ in ended]
    stages = 3 + 1 + 6 + 1  # load, parity, build, measure
    assert sum(one["ran"] for one in facts) == stages
    assert sum(one["reused"] for one in facts) == 2 * (7 + stages) - stages
    check_whole(fresh, deployment)


@contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[int], None]]:
    """A file system of its own at `folder`; gives what sets how much room it has left."""

    def leave(room_bytes: int) -> None:
        used = os.statvfs(folder)
        size = (used.f_blocks - used.f_bfree) * used.f_frsize + room_bytes
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True, capture_output=True)

    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], check=True, capture_output=True)
    try:
        yield leave
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def as_root_of_its_own(request: pytest.FixtureRequest, folder: Path) -> bool:
    """Without root, who alone may mount: the same test again in a user namespace; True when it has passed there."""
    if os.geteuid() == 0:
        return False
    inside = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-m", "pytest", "-q"]
    words = [*inside, f"--basetemp={folder / 'inside'}", request.node.nodeid]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return True


@pytest.mark.parametrize("room_bytes", [4_096, 65_536, 131_072])
def test_a_full_disk_is_one_sentence_and_the_next_build_with_space_continues(
    fresh: Workshop,
    recipe: Path,
    workshop: Workshop,
    deployment: Path,
    request: pytest.FixtureRequest,
    room_bytes: int,
) -> None:
    if as_root_of_its_own(request, fresh.folder):
        return
    with small_disk(fresh.options.store) as leave:
        forget(fresh, workshop, ("load", "parity", "build", "measure"))
        leave(room_bytes)
        done = run("build", recipe, workshop=fresh)
        assert done.returncode == 3, done.stderr
        [sentence] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "no space is left" in sentence
        assert "Traceback" not in done.stderr
        leave(32_000_000)
        done = run("build", recipe, "--json", workshop=fresh)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["reused"] >= 7
        check_whole(fresh, deployment)


def test_a_file_that_may_not_grow_is_one_sentence(fresh: Workshop, recipe: Path, workshop: Workshop) -> None:
    forget(fresh, workshop, ("load", "parity", "build", "measure"))
    limit = 20_000
    done = subprocess.run(
        command("build", recipe, workshop=fresh), capture_output=True, text=True, cwd=ROOT, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("error: ") == 1
    assert run("build", recipe, workshop=fresh).returncode == 0


def test_an_output_folder_that_cannot_be_made_is_one_sentence(
    fresh: Workshop, recipe: Path, workshop: Workshop
) -> None:
    forget(fresh, workshop, ())
    fresh.options.out.write_text("a file, not a folder")
    done = run("build", recipe, workshop=fresh)
    assert done.returncode in (2, 3), done.stderr
    [sentence] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert str(fresh.options.out) in sentence
    assert "unexpected" not in sentence
