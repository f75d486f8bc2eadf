"""Where a server may listen, its token, its certificate, its port."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from msao_compile.errors import InputError
from msao_compile.runtime.serve.edge.gate import LOOPBACK_NAMES
from msao_compile.runtime.serve.edge.server import Listening, _bind, _check_certificate, _url, admit

TOKEN = "0123456789abcdef"


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    file.chmod(0o600)
    return file


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_loopback_needs_no_token_and_answers_to_its_names(host: str) -> None:
    assert admit(Listening(host)).hosts == LOOPBACK_NAMES


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_elsewhere_a_token_or_a_word_of_permission_is_needed(host: str, token: Path) -> None:
    with pytest.raises(InputError, match="--token-file FILE, or --allow-anonymous"):
        admit(Listening(host))
    assert admit(Listening(host, token_file=token)).token == TOKEN.encode()
    open_to_all = admit(Listening(host, anonymous=True))
    assert (open_to_all.token, open_to_all.hosts) == (None, None)


def test_a_token_that_crosses_a_network_in_the_clear_is_warned_of(
    token: Path, caplog: pytest.LogCaptureFixture
) -> None:
    admit(Listening("127.0.0.1", token_file=token))
    admit(Listening("192.0.2.1", token_file=token, certificate=token, key=token))
    assert not caplog.records
    admit(Listening("192.0.2.1", token_file=token))
    assert "in the clear" in caplog.text


@pytest.mark.parametrize("content", ["", "short", "with blanks in between it", "\u00fc" * 20])
def test_a_weak_or_broken_token_is_refused(token: Path, content: str) -> None:
    token.write_text(content)
    with pytest.raises(InputError, match="no token of at least 16 characters"):
        admit(Listening(token_file=token))


def test_a_token_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no-such-file cannot be read"):
        admit(Listening(token_file=tmp_path / "no-such-file"))


def test_a_token_that_others_can_read_is_warned_of(token: Path, caplog: pytest.LogCaptureFixture) -> None:
    admit(Listening(token_file=token))
    assert not caplog.records
    token.chmod(0o644)
    admit(Listening(token_file=token))
    assert "chmod 600" in caplog.text


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of 127.0.0.1 cannot be taken"):
            _bind("127.0.0.1", port)


def test_an_address_that_is_none_is_told() -> None:
    with pytest.raises(InputError, match="no address of this machine"):
        _bind("no such host", 0)


def test_the_url_has_the_real_port() -> None:
    with _bind("127.0.0.1", 0) as listener:
        assert _url(Listening(), listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_certificate_without_key_or_with_rubbish_is_refused(tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("rubbish")
    with pytest.raises(InputError, match="give --tls-cert and --tls-key"):
        _check_certificate(Listening(certificate=rubbish))
    with pytest.raises(InputError, match="give a PEM certificate and its key"):
        _check_certificate(Listening(certificate=rubbish, key=rubbish))
    with pytest.raises(InputError, match="No such file"):
        _check_certificate(Listening(certificate=tmp_path / "a", key=tmp_path / "b"))
