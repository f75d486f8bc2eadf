"""Kits over a real sshd on loopback: sent, run and fetched, again after anything went wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import kits
import pytest

from msao_compile.cli.app import main
from msao_compile.errors import DamagedFile, InputError, MissingTool, StageError
from msao_compile.farm import ssh
from msao_compile.farm.ssh import Host
from msao_compile.stages.kit.archive import Entry

from . import sshd

needs_sshd = pytest.mark.skipif(sshd.missing() is not None, reason=str(sshd.missing()))


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Device]:
    with sshd.running(tmp_path_factory.mktemp("device")) as found:
        yield found


@pytest.fixture
def host(device: sshd.Device, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("PATH", f"{device.client()}:{os.environ['PATH']}")
    return Host.read(device.address)


@pytest.mark.parametrize(
    ("text", "read"),
    [("me@orin", Host("me@orin")), ("me@10.0.0.2:2222", Host("me@10.0.0.2", 2222)), ("me@fe80::1", Host("me@fe80::1"))],
)
def test_an_address_has_a_port_or_none(text: str, read: Host) -> None:
    assert Host.read(text) == read


@pytest.mark.parametrize("text", ["", "-oProxyCommand=x", "me@orin:", "me@orin:port", "me@orin:70000"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"give user@host or user@host:port"):
        Host.read(text)


@needs_sshd
def test_only_what_is_lacking_or_changed_is_sent(host: Host, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(3_000_000))
    place = tmp_path / "a folder's name"
    entries = [Entry("one", b"1"), Entry("deep/two", b"2"), Entry("deep/large", tmp_path / "large")]
    assert ssh.push(host, str(place), entries) == 3
    assert (place / "deep/two").read_bytes() == b"2" and (place / "deep/large").stat().st_size == 3_000_000
    assert ssh.push(host, str(place), entries) == 0
    (place / "deep/large").write_bytes(bytes(2_000_000))  # as a broken connection leaves it
    assert ssh.push(host, str(place), entries) == 1
    assert (place / "deep/large").stat().st_size == 3_000_000


@needs_sshd
def test_a_file_is_fetched_whole_and_not_twice(host: Host, tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"engine")
    digest, here = Entry("", b"engine").sha256, tmp_path / "here" / "file"
    assert ssh.fetch(host, str(tmp_path / "there"), here, digest)
    assert here.read_bytes() == b"engine"
    assert not ssh.fetch(host, str(tmp_path / "there"), here, digest)
    (tmp_path / "there").write_bytes(b"other")
    with pytest.raises(DamagedFile, match="where the receipt says"):
        ssh.fetch(host, str(tmp_path / "there"), tmp_path / "again", digest)
    with pytest.raises(StageError, match="fetching .* failed there with exit 1 .*No such file"):
        ssh.fetch(host, str(tmp_path / "nowhere"), tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "there"]


@needs_sshd
def test_every_line_is_told_and_the_exit_code_is_that_of_the_command(host: Host, tmp_path: Path) -> None:
    told: list[str] = []
    assert ssh.stream(host, str(tmp_path), "pwd; echo one; exit 5", told.append) == 5
    assert told == [str(tmp_path), "one"]
    assert ssh.stream(host, str(tmp_path), "echo two >&2", told.append) == 0
    assert told[2:] == ["two"]


@needs_sshd
def test_a_machine_that_lets_nobody_in_is_one_sentence(
    device: sshd.Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{device.client('stranger')}:{os.environ['PATH']}")
    with pytest.raises(MissingTool, match=r"is not reached by ssh \(.*Permission denied"):
        ssh.push(Host.read(device.address), str(tmp_path / "kit"), [Entry("one", b"1")])
    name = device.address.partition(":")[0]
    with pytest.raises(MissingTool, match="Connection refused"):
        ssh.push(Host(name, 1), str(tmp_path / "kit"), [Entry("one", b"1")])


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the device keeps kits: in this test's folder, and not in anybody's home."""
    monkeypatch.setattr("msao_compile.cli.kit.PLACE", f"{tmp_path}/kept/")
    return tmp_path / "kept"


@needs_sshd
def test_a_kit_goes_there_runs_and_comes_back_as_a_receipt(
    host: Host, device: sshd.Device, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorRT-RTX plays the device's builder; there is no GPU, so no engine is more than built."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX builds the engines of this kit")
    folder = kits.write(tmp_path / "deployment")
    command = [
        "kit",
        str(folder),
        "--target",
        kits.TARGET,
        "--ssh",
        device.address,
        "-o",
        str(tmp_path / "back"),
        "--json",
    ]
    code = main(command)
    out, err = capsys.readouterr()
    assert code == 4, err
    found = json.loads(out)
    assert {module["status"] for module in found["modules"]} == {"built"}
    assert "driver" in found["error"]["message"] and found["error"]["class"] == "MissingTool"
    assert "done build edge/decoder" in err
    receipt = json.loads((tmp_path / "back/receipt.json").read_text())
    for module in receipt["modules"]:
        assert (tmp_path / "back" / module["engine"]["path"]).read_bytes().startswith(b"MSAOENG")
    shutil.rmtree(tmp_path / "back")
    assert main(command) == 4
    again = capsys.readouterr().err
    assert "0 files sent" in again and "reuse build edge/decoder" in again and "begin build" not in again
    assert [path.name for path in kept.iterdir()] == [found["kit"]]


@needs_sshd
def test_a_connection_that_breaks_loses_nothing(
    host: Host, device: sshd.Device, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX builds the engines of this kit")
    folder = kits.write(tmp_path / "deployment")
    code = (
        "import sys\nfrom msao_compile.cli import app, kit\nkit.PLACE = sys.argv[1]\nsys.exit(app.main(sys.argv[2:]))"
    )
    command = ["kit", str(folder), "-t", kits.TARGET, "--ssh", device.address, "-o", str(tmp_path / "back")]
    asked = [sys.executable, "-c", code, f"{tmp_path}/kept/", *command]
    with subprocess.Popen(asked, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        for line in process.stderr or ():
            if "begin build edge/decoder" in line:
                os.killpg(process.pid, signal.SIGKILL)
                break
    monkeypatch.setattr("msao_compile.cli.kit.PLACE", f"{tmp_path}/kept/")
    for _ in range(60):
        found = main(command)
        if found != StageError.exit_code:  # what was left behind goes on there by itself, and keeps others out
            break
        time.sleep(0.5)
    assert found == 4
    last = capsys.readouterr().err
    assert "reuse build edge/embed_tokens" in last and "begin build edge/embed_tokens" not in last


@needs_sshd
def test_a_device_that_refuses_the_kit_is_told_in_its_own_words(
    host: Host, device: sshd.Device, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the device has it")
    orin = {"target_id": "jetson-orin-nano-8gb", "platform_kind": "jetson", "architecture": "aarch64",
            "gpu_architecture": "sm87"}  # fmt: skip
    folder = kits.write(tmp_path / "deployment", compatibility=orin)
    code = main(["kit", str(folder), "-t", kits.TARGET, "--ssh", device.address, "-o", str(tmp_path / "back")])
    assert code == 2
    assert "wrote no receipt: this device differs from the kit's target in" in capsys.readouterr().err
    assert not (tmp_path / "back").exists()
