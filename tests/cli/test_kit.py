"""`kit`, `keygen` and `sign` as the user sees them; over ssh they are among the tests of the farm."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import kits
import pytest

from msao_compile.errors import StageError
from msao_compile.pipeline import Options

from .conftest import Cli


@pytest.fixture
def orders(tmp_path: Path) -> Path:
    return kits.write(tmp_path / "deployment")


def test_a_dry_run_tells_sizes_and_writes_nothing(cli: Cli, orders: Path, tmp_path: Path) -> None:
    output = tmp_path / "kit.tar.gz"
    ran = cli("kit", orders, "--target", "l4", "--dry-run", "-o", output)
    assert ran.code == 0 and not output.exists()
    assert [line.split("  ")[0] for line in ran.out.splitlines()] == ["module", "edge/embed_tokens", "edge/decoder"]
    assert "before compression" in ran.err
    facts = cli("kit", orders, "-t", "l4", "--dry-run", "--json").json
    assert (
        facts["files"]["modules/edge/decoder.onnx.data"] == (orders / "modules/edge/decoder.onnx.data").stat().st_size
    )
    assert facts["size_bytes"] == sum(facts["files"].values())
    assert [module["checks"] for module in facts["modules"]][1] == ["prefill-opt", "prefill-min"]


def test_a_kit_is_written_and_its_name_is_the_result(cli: Cli, orders: Path, tmp_path: Path) -> None:
    output = tmp_path / "kit.tar.gz"
    ran = cli("kit", orders, "-t", "l4", "-o", output)
    assert (ran.code, ran.out) == (0, f"{output}\n")
    assert "run `python3 kit.py` there" in ran.err
    with tarfile.open(output) as opened:
        assert opened.getnames()[0] == "kit.json"
    assert cli("kit", orders, "-t", "l4", "-o", output, "--quiet").err == ""


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tar.zst"])
def test_a_kit_may_be_made_again_and_what_is_none_stays(cli: Cli, orders: Path, tmp_path: Path, ending: str) -> None:
    if ending == ".tar.zst":
        pytest.importorskip("zstandard", reason="the extra [kit] is not installed")
    output = tmp_path / f"kit{ending}"
    assert cli("kit", orders, "-t", "l4", "-o", output).code == 0
    made = output.read_bytes()
    assert cli("kit", orders, "-t", "l4", "-o", output).code == 0 and output.read_bytes() == made
    for content in (b"my notes", b"", made[:4]):
        output.write_bytes(content)
        ran = cli("kit", orders, "-t", "l4", "-o", output)
        assert (ran.code, "exists already and is no kit" in ran.err) == (2, True), content
        assert output.read_bytes() == content


def test_what_cannot_be_packed_or_written_is_one_sentence(cli: Cli, orders: Path, tmp_path: Path) -> None:
    ran = cli("kit", orders, "-t", "orin", "-o", tmp_path / "kit.tar")
    assert (ran.code, ran.err) == (2, "error: --target orin: no such target; this deployment has l4\n")
    ran = cli("kit", orders, "-t", "l4", "-o", tmp_path / "kit.zip")
    assert ran.code == 2 and "kits are written as" in ran.err
    ran = cli("kit", orders, "-t", "l4", "--ssh", "me@orin:port")
    assert ran.code == 2 and "give user@host or user@host:port" in ran.err
    (tmp_path / "file").write_text("")
    ran = cli("kit", orders, "-t", "l4", "-o", tmp_path / "file" / "kit.tar")
    assert ran.code == 3 and "the kit cannot be written" in ran.err


def test_a_key_is_made_and_signs_a_receipt_and_a_deployment(cli: Cli, orders: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    ran = cli("keygen", tmp_path / "key.pem")
    assert (ran.code, ran.out) == (0, f"{tmp_path / 'key.pub.pem'}\n")
    ran = cli("sign", orders, "--key", tmp_path / "key.pem", "--json")
    assert ran.json == {"signature": str(orders / "deployment.json.sig")}
    assert set(json.loads((orders / "deployment.json.sig").read_text())) == {"format", "key", "signature"}
    ran = cli("keygen", tmp_path / "key.pem")
    assert ran.code == 2 and "exists already and may be a key in use" in ran.err


def test_receipts_and_keys_are_handed_to_the_build(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Options] = []

    def record(recipe: Path, options: Options, tell: object) -> None:
        seen.append(options)
        raise StageError("enough")

    monkeypatch.setattr("msao_compile.pipeline.build", record)
    words = ("--accept-receipt", "a/receipt.json", "--accept-receipt", "b/receipt.json", "--trusted-keys", "keys")
    assert cli("build", "r.toml", *words).code == 3
    assert seen[0].receipts == (Path("a/receipt.json"), Path("b/receipt.json"))
    assert seen[0].trusted_keys == Path("keys")
