"""Tokens and certificates that cannot be used are told of before anything listens, each with what to change."""

from __future__ import annotations

from pathlib import Path

import certificates
import pytest

from msao_compile.errors import InputError
from msao_compile.runtime.serve.cloud.security import Certificate, read_tokens
from msao_compile.runtime.wire.kserve.options import LinkOptions


def test_a_certificate_and_its_key_are_read(tmp_path: Path) -> None:
    found = certificates.write(tmp_path)
    assert found.read() == (found.key.read_bytes(), found.chain.read_bytes())


def test_a_certificate_with_the_key_of_another_is_refused(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    one, other = certificates.write(tmp_path / "one"), certificates.write(tmp_path / "other")
    with pytest.raises(InputError, match=r"chain\.pem with key .*other/key\.pem cannot be used .*: give a PEM"):
        Certificate(one.chain, other.key).read()


@pytest.mark.parametrize("content", [b"", b"no PEM", b"\xff\xfe"])
def test_a_certificate_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(InputError, match="without a passphrase"):
        Certificate(file, file).read()


def test_a_certificate_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pem .*No such file"):
        Certificate(tmp_path / "none.pem", tmp_path / "none.pem").read()


@pytest.mark.parametrize("content", [b"", b"# words", b"\xff\xfe"])
def test_roots_that_are_none_are_refused_before_a_cloud_is_asked(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "roots.pem"
    file.write_bytes(content)
    with pytest.raises(InputError, match="it is no PEM file of certificates"):
        LinkOptions(roots=file).read_roots()


def test_tokens_that_are_too_short_are_refused_with_how_to_make_some(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("short\n")
    with pytest.raises(InputError, match="openssl rand"):
        read_tokens(file)
