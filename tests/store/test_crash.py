"""The store under kill -9, full disks and two builds at once."""

import errno
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from msao_compile.errors import StageError
from msao_compile.store.record import Record
from msao_compile.store.store import Store

from .requests import key

FORK = multiprocessing.get_context("fork")
TRIES = 15


def write_until_killed(root: Path, seed: int) -> None:
    store = Store(root)
    chance = random.Random(seed)
    for number in range(100_000):
        wanted = key(f"edge/{seed}-{number}")
        with store.building(wanted), store.workspace() as folder:
            outputs = {}
            for name in ("graph", "weights"):
                outputs[name] = folder / name
                outputs[name].write_bytes(chance.randbytes(chance.randrange(1, 100_000)))
            store.commit(wanted, outputs, {"number": number})


def test_killing_a_writer_at_any_moment_leaves_whole_records_or_none(tmp_path: Path) -> None:
    chance = random.Random(7)
    store = Store(tmp_path / "store")
    for seed in range(TRIES):
        writer = FORK.Process(target=write_until_killed, args=(store.root, seed))
        writer.start()
        while (
            len(list(store.root.glob("records/export/*"))) <= seed
        ):  # at least one record a writer, however busy the machine
            assert writer.is_alive()
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.03))
        writer.kill()
        writer.join()
        assert writer.exitcode == -9
        assert store.verify() == []
    records = store.records("export")
    assert len(records) >= TRIES
    assert all(store.lookup(record.key, "digest") == record for record in records)
    with store.in_use():
        assert sorted(os.listdir(store.root / "workspaces")) == ["gate.lock"]


def write_and_die_at_step(root: Path, step: int) -> None:
    """Commit once, killed on entering the step-th call that changes what lasts."""
    steps = itertools.count()

    def deadly(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*arguments: Any, **options: Any) -> Any:
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*arguments, **options)

        return changed

    for name in ("replace", "fsync", "chmod", "unlink", "mkdir"):
        setattr(os, name, deadly(getattr(os, name)))
    store = Store(root)
    with store.building(key()), store.workspace() as folder:
        outputs = {name: folder / name for name in ("graph", "weights")}
        for name, path in outputs.items():
            path.write_bytes(name.encode() * 1000)
        store.commit(key(), outputs, {})


def test_a_crash_at_each_step_leaves_a_whole_record_or_none_and_the_next_build_succeeds(tmp_path: Path) -> None:
    complete = []
    for step in range(100):
        store = Store(tmp_path / str(step))
        writer = FORK.Process(target=write_and_die_at_step, args=(store.root, step))
        writer.start()
        writer.join()
        assert store.verify() == []
        complete.append(isinstance(store.lookup(key(), "digest"), Record))
        if writer.exitcode == 0:
            break
        build_after_a_crash(store)
    assert complete[-1] and not complete[0]
    assert len(complete) > 15 and complete == sorted(complete)


def build_after_a_crash(store: Store) -> None:
    with store.in_use(), store.workspace() as folder:
        (folder / "graph").write_bytes(b"graph" * 1000)
        assert store.commit(key("other"), {"graph": folder / "graph"}, {}) == store.lookup(key("other"), "digest")
    assert sorted(os.listdir(store.root / "workspaces")) == ["gate.lock"]


def test_a_workspace_of_the_living_is_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with store.workspace() as folder:
        (folder / "half").write_bytes(b"half")
        with Store(store.root).in_use():
            assert (folder / "half").exists()
    assert not folder.exists()


def build_slowly(root: Path, log: Path) -> None:
    store = Store(root)
    with store.building(key()) as found:
        if isinstance(found, Record):
            return
        with store.workspace() as folder:
            with log.open("a") as stream:
                stream.write("built\n")
            time.sleep(0.3)
            (folder / "out").write_bytes(b"out")
            store.commit(key(), {"out": folder / "out"}, {})


def test_two_builds_of_one_key_do_the_work_once(tmp_path: Path) -> None:
    builders = [FORK.Process(target=build_slowly, args=(tmp_path / "store", tmp_path / "log")) for _ in range(3)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(300)
    assert [builder.exitcode for builder in builders] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "built\n"


def test_a_builder_that_dies_lets_the_next_one_build(tmp_path: Path) -> None:
    first = FORK.Process(target=build_slowly, args=(tmp_path / "store", tmp_path / "log"))
    first.start()
    while not (tmp_path / "log").exists():
        time.sleep(0.01)
    first.kill()
    first.join()
    build_slowly(tmp_path / "store", tmp_path / "log")
    assert (tmp_path / "log").read_text() == "built\nbuilt\n"
    assert isinstance(Store(tmp_path / "store").lookup(key(), "digest"), Record)


def mounted(folder: Path) -> bool:
    if shutil.which("mount") is None:
        return False
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of 1 MB; where mounting is not allowed, a folder in which a copy of 1 MB meets the same refusal."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if mounted(folder):
        yield folder
        subprocess.run(["umount", folder], check=True)
        return

    def refused(source: Path, destination: Path) -> None:
        destination.write_bytes(source.read_bytes()[:1000])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("shutil.copyfile", refused)
    yield folder


def leftovers(root: Path) -> list[str]:
    return [path.name for path in root.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_full_disk_is_one_sentence_with_numbers_and_leaves_nothing_partial(tmp_path: Path, small_disk: Path) -> None:
    store = Store(small_disk / "store")
    big = tmp_path / "big"
    big.write_bytes(b"x" * 3_000_000)
    with pytest.raises(StageError) as caught:
        store.put_file(big, move=False)
    assert caught.value.exit_code == 3
    said = str(caught.value)
    assert said.startswith(f"no space is left for {store.root}: storing big needs 3.0 MB and ")
    assert said.endswith(" MB are free; free some space, and the next build continues from what is finished")
    assert leftovers(store.root) == [] and big.exists()


def test_a_disk_that_fills_up_under_a_stage_is_a_stage_error(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with pytest.raises(StageError, match="no space is left for"), store.workspace() as folder:
        (folder / "half").write_bytes(b"half")
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    assert leftovers(store.root) == []


def test_a_full_disk_under_the_record_leaves_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store")
    whole = os.replace

    def refused(source: Path, destination: Path) -> None:
        if "records" in destination.parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(source, destination)

    monkeypatch.setattr(os, "replace", refused)
    out = tmp_path / "out"
    out.write_bytes(b"out")
    with pytest.raises(StageError, match="writing a record needs more space"):
        store.commit(key(), {"out": out}, {})
    monkeypatch.undo()
    assert store.lookup(key()) is None and store.verify() == []
    assert not list((store.root / "records").rglob("*.json"))


def test_a_deployment_on_a_full_disk_keeps_its_old_file(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(source: Path, destination: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    store = Store(tmp_path / "store")
    big = tmp_path / "big"
    big.write_bytes(b"x" * 3_000_000)
    blob = store.put_file(big)
    destination = small_disk / "weights"
    destination.write_bytes(b"old")
    monkeypatch.setattr(os, "link", refused)
    with pytest.raises(StageError, match=r"writing weights needs 3\.0 MB"):
        store.materialise(blob, destination)
    assert destination.read_bytes() == b"old" and os.listdir(small_disk) == ["weights"]
