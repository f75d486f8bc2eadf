"""A job in a process of its own: what comes back, what it took, and how it ends."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from msao_compile.errors import GateError, ShapeSpecialised, StageError
from msao_compile.farm.job import Job
from msao_compile.farm.local import run

from . import functions

PARENT = """
import sys
from pathlib import Path
from msao_compile.errors import Interrupted
from msao_compile.farm.job import Job
from msao_compile.farm.local import run
try:
    run(Job(function=sys.argv[1], arguments={"pids": sys.argv[2], "deaf": sys.argv[3] == "deaf"}, phase="the wait"))
except Interrupted as error:
    sys.exit(str(error))
"""


def job(name: str, log: Path | None = None, threads: int | None = None, **arguments: Any) -> Job:
    return Job(function=f"{functions.__name__}:{name}", arguments=arguments, log=log, threads=threads)


def is_alive(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def all_gone(pids: list[int], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(is_alive(pid) for pid in pids)


def test_the_value_comes_back_after_all_progress() -> None:
    seen: list[Mapping[str, Any]] = []
    result = run(job("double", number=21, steps=3), seen.append)
    assert result.value == {"doubled": 42}
    assert seen == [{"step": 0}, {"step": 1}, {"step": 2}]


def test_peak_memory_is_what_the_child_held() -> None:
    small = run(job("allocate", size_bytes=1)).peak_rss_bytes
    large = run(job("allocate", size_bytes=200_000_000)).peak_rss_bytes
    assert 190_000_000 < large - small < 230_000_000


def test_peak_memory_leaves_out_what_the_parent_holds() -> None:
    ballast = bytes([1]) * 300_000_000
    assert run(job("double", number=1)).peak_rss_bytes < 200_000_000
    del ballast


def test_processor_time_is_measured_apart_from_wall_time() -> None:
    works, rests = run(job("spin", seconds=0.5)), run(job("rest", seconds=0.5))
    assert works.cpu_seconds >= 0.5
    assert rests.seconds - rests.cpu_seconds >= 0.4  # however long its start takes


def test_an_error_of_the_tree_keeps_its_class_and_message(tmp_path: Path) -> None:
    with pytest.raises(ShapeSpecialised) as caught:
        run(job("specialise", log=tmp_path / "log"))
    assert str(caught.value) == "decoder froze batch_size at 1: mark it dynamic"
    assert caught.value.exit_code == 3
    assert "in specialise" in caught.value.__notes__[0]


def test_a_subclass_the_parent_does_not_know_becomes_its_base() -> None:
    with pytest.raises(GateError) as caught:
        run(job("refuse"))
    assert str(caught.value) == "cosine 0.14 is below 0.99"
    assert (type(caught.value), caught.value.exit_code) == (GateError, 5)


def test_any_other_error_is_a_stage_error_that_leads_to_the_traceback(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "stage.log"
    with pytest.raises(StageError) as caught:
        run(job("stumble", log=log))
    assert str(caught.value) == (
        f"{functions.__name__}:stumble failed with KeyError: 'past_key_values.0.key'; the traceback is in {log}"
    )
    assert "about to stumble" in log.read_text() and "Traceback" in log.read_text()


def test_a_full_disk_in_the_child_is_said_as_such() -> None:
    with pytest.raises(StageError, match="no space is left on the disk .*weights.bin.*the next build continues"):
        run(job("fill_the_disk"))


def test_a_value_that_is_not_json_is_a_stage_error() -> None:
    with pytest.raises(StageError, match="TypeError: Object of type object is not JSON serializable"):
        run(job("return_an_object"))


def test_a_function_that_is_not_there_is_a_stage_error() -> None:
    with pytest.raises(StageError, match="failed with AttributeError: .*no attribute 'nothing'"):
        run(job("nothing"))


def test_a_killed_child_is_told_with_its_signal_its_peak_and_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        run(job("die", log=tmp_path / "log", signal=int(signal.SIGKILL)))
    said = str(caught.value)
    assert "was killed by SIGKILL, which the system does when memory runs out" in said
    assert said.endswith(f"its log {tmp_path / 'log'} ends with: building layer 17")
    assert int(said.partition("held at least ")[2].partition(" MB")[0]) >= 100


def test_a_crash_in_native_code_leaves_a_stack_in_the_log(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="was killed by SIGSEGV; it held"):
        run(job("die", log=tmp_path / "log", signal=int(signal.SIGSEGV)))
    assert "in die" in (tmp_path / "log").read_text()


def test_a_child_that_leaves_without_an_answer_is_a_stage_error() -> None:
    with pytest.raises(StageError, match="ended with exit code 7 before it answered"):
        run(job("leave"))


def test_a_temporary_log_stays_only_where_a_message_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run(job("double", number=1))
    with pytest.raises(GateError):
        run(job("refuse"))
    assert os.listdir(tmp_path) == []
    with pytest.raises(StageError) as caught:
        run(job("stumble"))
    (log,) = tmp_path.iterdir()
    assert str(log) in str(caught.value)


def test_the_number_of_threads_reaches_the_libraries() -> None:
    assert run(job("environment", threads=1)).value == {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def test_a_stage_that_reads_stdin_finds_it_empty() -> None:
    assert run(job("read_stdin")).value == ""


def test_what_a_job_left_running_is_ended_with_it() -> None:
    pid = run(job("leave_a_child_behind")).value
    assert isinstance(pid, int) and all_gone([pid])


def test_an_observer_that_fails_ends_the_child(tmp_path: Path) -> None:
    def fail(record: Mapping[str, Any]) -> None:
        raise RuntimeError("drawing failed")

    with pytest.raises(RuntimeError, match="drawing failed"):
        run(job("double", number=1, steps=1), fail)


@pytest.mark.parametrize(
    ("number", "manners"), [(signal.SIGINT, "polite"), (signal.SIGTERM, "polite"), (signal.SIGTERM, "deaf")]
)
def test_a_signal_to_the_parent_ends_child_and_grandchild(tmp_path: Path, number: int, manners: str) -> None:
    parent, pids = parent_of_a_hanging_job(tmp_path, manners)
    parent.send_signal(number)
    _, said = parent.communicate(timeout=120)
    assert b"interrupted in the wait; what was finished is kept" in said and b"Traceback" not in said
    assert all_gone(pids)


def test_a_parent_that_is_killed_takes_child_and_grandchild_along(tmp_path: Path) -> None:
    parent, pids = parent_of_a_hanging_job(tmp_path, "polite")
    parent.kill()
    parent.communicate(timeout=120)
    assert all_gone(pids)


def parent_of_a_hanging_job(tmp_path: Path, manners: str) -> tuple[subprocess.Popen[bytes], list[int]]:
    function, pids = f"{functions.__name__}:hang_with_a_child", tmp_path / "pids"
    command = [sys.executable, "-c", PARENT, function, str(pids), manners]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    parent = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not pids.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    found = [int(pid) for pid in pids.read_text().split()]
    assert all(is_alive(pid) for pid in found)
    return parent, found
