"""Signatures: only exactly these bytes, only by a key that is trusted."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest

from msao_compile.errors import DamagedFile, DeploymentError, InputError, MissingTool
from msao_compile.manifest.signature import make_key, refuse_untrusted, sign

pytest.importorskip("cryptography", reason="signatures need it")


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    """A signed file, with `key.pem` and `trusted/key.pub.pem` beside it."""
    public, _ = make_key(tmp_path / "key.pem")
    (tmp_path / "trusted").mkdir()
    public.rename(tmp_path / "trusted" / public.name)
    path = tmp_path / "receipt.json"
    path.write_bytes(b'{"kit": 1}')
    sign(path, tmp_path / "key.pem")
    return path


def test_what_a_trusted_key_signed_is_taken_by_file_or_folder(signed: Path) -> None:
    folder = signed.parent / "trusted"
    assert refuse_untrusted(signed, folder) == refuse_untrusted(signed, folder / "key.pub.pem")


def test_a_private_key_is_its_owners_alone_and_never_written_over(signed: Path) -> None:
    key = signed.parent / "key.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = key.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        make_key(key)
    assert key.read_bytes() == before


def test_other_bytes_are_refused(signed: Path) -> None:
    signed.write_bytes(b'{"kit": 2}')
    with pytest.raises(DamagedFile, match="is of other bytes"):
        refuse_untrusted(signed, signed.parent / "trusted")


def test_a_signature_that_was_changed_is_refused(signed: Path) -> None:
    place = signed.with_name("receipt.json.sig")
    about = json.loads(place.read_text())
    flipped = ("B" if about["signature"][0] == "A" else "A") + about["signature"][1:]
    place.write_text(json.dumps({**about, "signature": flipped}))
    with pytest.raises(DamagedFile, match="is of other bytes"):
        refuse_untrusted(signed, signed.parent / "trusted")
    place.write_text(json.dumps({**about, "signature": "?"}))
    with pytest.raises(DeploymentError, match="not a signature of format ed25519/1"):
        refuse_untrusted(signed, signed.parent / "trusted")


def test_a_foreign_key_is_refused_and_both_are_named(signed: Path) -> None:
    _, other = make_key(signed.parent / "other.pem")
    sign(signed, signed.parent / "other.pem")
    with pytest.raises(DeploymentError, match=f"signed by the key {other}, which is not among the trusted ones"):
        refuse_untrusted(signed, signed.parent / "trusted")


def test_a_foreign_key_that_takes_a_trusted_name_is_refused(signed: Path) -> None:
    place = signed.with_name("receipt.json.sig")
    name = json.loads(place.read_text())["key"]
    make_key(signed.parent / "other.pem")
    sign(signed, signed.parent / "other.pem")
    place.write_text(json.dumps({**json.loads(place.read_text()), "key": name}))
    with pytest.raises(DamagedFile, match="is of other bytes"):
        refuse_untrusted(signed, signed.parent / "trusted")


def test_what_is_not_signed_is_refused_with_the_command(signed: Path) -> None:
    signed.with_name("receipt.json.sig").unlink()
    with pytest.raises(DeploymentError, match="is not signed .* sign it with `msao-compile sign`"):
        refuse_untrusted(signed, signed.parent / "trusted")


def test_no_keys_and_no_key_are_refused(signed: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no public keys"):
        refuse_untrusted(signed, tmp_path / "empty")
    with pytest.raises(InputError, match="not a public key"):
        refuse_untrusted(signed, signed)
    with pytest.raises(InputError, match="not a private key"):
        sign(signed, signed)
    with pytest.raises(InputError, match="cannot be read"):
        sign(tmp_path / "none.json", tmp_path / "key.pem")


def test_without_cryptography_the_extra_is_named(signed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(MissingTool, match=r"pip install 'msao-compile\[kit\]'"):
        refuse_untrusted(signed, signed.parent / "trusted")


def test_half_a_pair_is_not_left_behind(tmp_path: Path) -> None:
    (tmp_path / "key.pub.pem").write_text("another's")
    with pytest.raises(InputError, match=r"key\.pub\.pem: exists already"):
        make_key(tmp_path / "key.pem")
    assert [file.name for file in tmp_path.iterdir()] == ["key.pub.pem"]
    assert (tmp_path / "key.pub.pem").read_text() == "another's"
