"""Who is let in: bearer tokens from a file, compared in constant time, and a certificate with its key."""

from __future__ import annotations

import hmac
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from msao_compile.errors import InputError, Refused

SHORTEST = 16


class Tokens:
    """The tokens that are let in; without any, everybody is."""

    def __init__(self, tokens: tuple[str, ...] = ()) -> None:
        self._expected = tuple(f"Bearer {token}".encode() for token in tokens)

    def __bool__(self) -> bool:
        return bool(self._expected)

    def check(self, authorization: str | bytes | None) -> str | None:
        """Let a request in by its `authorization` header; which client it is, where tokens tell clients apart.

        Raises:
            Refused: it is missing or holds no token that is known.
        """
        if not self._expected:
            return None
        given = authorization.encode(errors="replace") if isinstance(authorization, str) else authorization or b""
        matches = [hmac.compare_digest(given, expected) for expected in self._expected]
        if not any(matches):
            raise Refused("the token is missing or wrong: send one that this server knows as a bearer token")
        return f"token {matches.index(True) + 1}" if len(matches) > 1 else None


def host_of(peer: str) -> str:
    """The machine that a gRPC peer (`ipv4:10.0.0.1:5000`, `ipv6:%5B::1%5D:5000`) or an address names.

    Its port is left out: who opens many connections is still one client.
    """
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return peer
    return unquote(rest).rpartition(":")[0].strip("[]")


def read_tokens(file: Path | None) -> Tokens:
    """The tokens of a file, one a line; no file lets everybody in.

    Raises:
        InputError: the file cannot be read, holds no token, or one that is too short or no plain text.
    """
    if file is None:
        return Tokens()
    try:
        tokens = tuple(line.strip() for line in file.read_text("ascii").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: the tokens cannot be read ({error}): give a file of plain text") from error
    if not tokens or any(len(token) < SHORTEST or not token.isprintable() for token in tokens):
        raise InputError(
            f"{file}: give one token a line, each of {SHORTEST} characters or more, as `openssl rand -hex 32` writes"
        )
    return Tokens(tokens)


@dataclass(frozen=True)
class Certificate:
    """A server's certificate chain and key, both files in PEM."""

    chain: Path
    key: Path

    def read(self) -> tuple[bytes, bytes]:
        """Key and chain, tried out: gRPC itself tells nothing of what is wrong with them.

        Raises:
            InputError: a file cannot be read, is no PEM, or they do not belong together; or the key has a passphrase.
        """
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.chain, self.key, lambda: "")
            return self.key.read_bytes(), self.chain.read_bytes()
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or error
            raise InputError(
                f"certificate {self.chain} with key {self.key} cannot be used ({said}): give a PEM certificate and its "
                "key, without a passphrase"
            ) from error
