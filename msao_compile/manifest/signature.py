"""Ed25519 signatures that lie beside a file: who vouches for exactly these bytes."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msao_compile.errors import DamagedFile, DeploymentError, InputError, MissingTool
from msao_compile.manifest.digest import sha256_bytes

ENDING = ".sig"
FORMAT = "ed25519/1"
PUBLIC_ENDING = ".pub.pem"
_PRIVATE_MODE = 0o600


def make_key(path: Path) -> tuple[Path, str]:
    """Write a private key (PEM, readable by its owner only) and its public key beside it; gives that and its name.

    Raises:
        InputError: one of the files exists already or cannot be written. MissingTool: no cryptography.
    """
    ed25519, serialization = _library()
    public = path.with_name(path.name.removesuffix(".pem") + PUBLIC_ENDING)
    key = ed25519.Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    told = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip
    made: list[Path] = []
    try:
        for place in (path, public):
            place.touch(_PRIVATE_MODE if place == path else 0o644, exist_ok=False)
            made.append(place)
        path.write_bytes(secret)
        public.write_bytes(told)
    except OSError as error:
        for place in made:  # half a pair would be taken for a key in use
            place.unlink(missing_ok=True)
        if isinstance(error, FileExistsError):
            raise InputError(
                f"{error.filename}: exists already and may be a key in use; choose another name"
            ) from error
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
    return public, _name(key.public_key())


def sign(path: Path, key: Path) -> Path:
    """Write `<path>.sig` over the file's exact bytes with a private key.

    Raises:
        InputError: the file or the key cannot be read. MissingTool: no cryptography.
    """
    ed25519, serialization = _library()
    try:
        secret = serialization.load_pem_private_key(key.read_bytes(), password=None)
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{key}: not a private key without a password in PEM form; make one with keygen") from error
    if not isinstance(secret, ed25519.Ed25519PrivateKey):
        raise InputError(f"{key}: not an Ed25519 key; make one with `msao-compile keygen`")
    told = base64.b64encode(secret.sign(content)).decode()
    place = path.with_name(path.name + ENDING)
    about = {"format": FORMAT, "key": _name(secret.public_key()), "signature": told}
    try:
        place.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{place}: cannot be written ({error.strerror})") from error
    return place


def refuse_untrusted(path: Path, trusted_keys: Path) -> str:
    """The name of the trusted key that signed the file; `trusted_keys` is a public key, or a folder of them (*.pem).

    Raises:
        DeploymentError: the file is not signed, by a key that is not trusted, or the signature cannot be read.
        DamagedFile: the signature is of other bytes.
        InputError: there are no trusted keys. MissingTool: no cryptography.
    """
    _library()
    trusted = {_name(key): key for key in _public_keys(trusted_keys)}
    place = path.with_name(path.name + ENDING)
    if not place.is_file():
        raise DeploymentError(f"{path} is not signed ({place.name} is missing); sign it with `msao-compile sign`")
    try:
        about = json.loads(place.read_bytes())
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']!r}")
        name, signature = str(about["key"]), base64.b64decode(about["signature"], validate=True)
    except (ValueError, KeyError, TypeError) as error:
        raise DeploymentError(f"{place}: not a signature of format {FORMAT} ({error}); sign the file again") from error
    if name not in trusted:
        raise DeploymentError(
            f"{path} is signed by the key {name}, which is not among the trusted ones ({', '.join(sorted(trusted))})"
        )
    if not _is_signed(trusted[name], signature, path.read_bytes()):
        raise DamagedFile(f"{path}: its signature by {name} is of other bytes; copy the file again, or sign it anew")
    return name


def _is_signed(key: Any, signature: bytes, content: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, content)
    except InvalidSignature:
        return False
    return True


def _public_keys(place: Path) -> Iterator[Any]:
    ed25519, serialization = _library()
    files = sorted(place.glob("*.pem")) if place.is_dir() else [place]
    if not files:
        raise InputError(f"{place}: holds no public keys (*.pem); put those in it that are trusted")
    for file in files:
        try:
            key = serialization.load_pem_public_key(file.read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: not a public key in PEM form; give the file that keygen wrote") from error
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise InputError(f"{file}: not an Ed25519 key; give the file that `msao-compile keygen` wrote")
        yield key


def _name(key: Any) -> str:
    """A public key's name: the digest of its 32 bytes."""
    _, serialization = _library()
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return sha256_bytes(raw)


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingTool("signatures need cryptography: pip install 'msao-compile[kit]'") from error
    return ed25519, serialization
