"""The driver's calls through their declared C types, against a driver whose memory is the host's."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import trt_stand_in as stand_in

from msao_compile.errors import StageError
from msao_compile.runtime.backends import cuda

NVRM = "NVRM version: NVIDIA UNIX {kind}Kernel Module{more}  {version}  Release Build  (root@x)  Mon Jul 28 2025\n"


@pytest.fixture
def driver() -> cuda.Driver:
    return cuda.Driver(stand_in.Driver())


def test_without_the_library_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "LIBRARY", "libno-such-driver.so.1")
    assert cuda.probe() == "there is no NVIDIA driver on this machine (libno-such-driver.so.1 is missing)"


@pytest.mark.parametrize(("code", "name"), [(100, "CUDA_ERROR_NO_DEVICE (100)"), (7, "error 7")])
def test_a_driver_that_does_not_start_says_its_error(monkeypatch: pytest.MonkeyPatch, code: int, name: str) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: stand_in.Driver(init=code))
    assert cuda.probe() == f"the NVIDIA driver does not start: cuInit says {name}"


def test_the_driver_says_what_the_gpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: stand_in.Driver())
    found = cuda.probe()
    assert isinstance(found, cuda.Driver)
    device = found.device
    assert (device.name, device.sm, device.cuda, device.multiprocessors) == ("Stand-in", 89, "13.2", 46)
    assert device.facts()["gpu_architectures"] == ["sm89"]
    assert found.memory() == (stand_in.TOTAL, stand_in.TOTAL)


@pytest.mark.parametrize(
    ("kind", "more", "version"),
    [("x86_64 ", "", "580.65.06"), ("Open ", " for aarch64", "540.4.0"), ("Open ", " for x86_64", "575.57.08")],
)
def test_the_kernel_module_says_its_version(kind: str, more: str, version: str) -> None:
    assert cuda.kernel_module(NVRM.format(kind=kind, more=more, version=version)) == version
    assert cuda.kernel_module("") is None


def test_what_is_put_on_the_device_comes_back(driver: cuda.Driver) -> None:
    stream, slot = cuda.Stream(driver), cuda.Slot(driver)
    value = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    address = slot.room(value.nbytes)
    slot.put(value, stream)
    found = slot.get(value.shape, "float32", stream)
    stream.synchronize()
    np.testing.assert_array_equal(found, value)
    assert slot.room(value.nbytes - 4) == address
    assert slot.room(100_000) != address
    assert slot.device.size_bytes == 131072


def test_rows_of_a_buffer_are_cut_each_at_its_own_end(driver: cuda.Driver) -> None:
    stream, wide, narrow = cuda.Stream(driver), cuda.Slot(driver), cuda.Slot(driver)
    rows = np.arange(12, dtype=np.int64).reshape(3, 4)
    wide.room(rows.nbytes)
    wide.put(rows, stream)
    narrow.device.take_rows(wide.device, 3, (32, 16), stream)
    np.testing.assert_array_equal(narrow.get((3, 2), "int64", stream), rows[:, :2])


def test_no_memory_is_an_error_that_says_what_is_free(driver: cuda.Driver) -> None:
    held = cuda.DeviceBuffer(driver, 1 << 20)
    free = stand_in.TOTAL - (1 << 20)
    with pytest.raises(StageError, match=rf"cuMemAlloc_v2 failed .*CUDA_ERROR_OUT_OF_MEMORY \(2\): .* {free} of"):
        cuda.DeviceBuffer(driver, stand_in.TOTAL + 1)
    del held
    assert driver.memory()[0] == stand_in.TOTAL


def test_captured_work_runs_when_it_is_launched(driver: cuda.Driver) -> None:
    library, stream, done = driver._library, cuda.Stream(driver), []
    graph = stream.capture(lambda: library.recording.append(lambda: done.append(1)))
    assert done == []
    graph.launch(stream)
    graph.launch(stream)
    assert done == [1, 1]


def test_capture_ends_where_the_work_fails(driver: cuda.Driver) -> None:
    def work() -> None:
        raise StageError("the library failed")

    stream, driver._library.capture_invalid = cuda.Stream(driver), stand_in.CAPTURE_INVALID
    with pytest.raises(StageError, match="^the library failed$"):
        stream.capture(work)
    assert driver._library.recording is None


def test_time_between_two_events(driver: cuda.Driver) -> None:
    stream, first, last = cuda.Stream(driver), cuda.Event(driver), cuda.Event(driver)
    first.record(stream)
    last.record(stream)
    assert last.elapsed_ms(first) == 1.5


def test_a_function_that_an_old_driver_lacks_is_named() -> None:
    library = stand_in.Driver()
    del library.cuGraphInstantiateWithFlags
    with pytest.raises(StageError, match="has no cuGraphInstantiateWithFlags: install a newer driver"):
        cuda.Stream(cuda.Driver(library)).capture(lambda: None)
