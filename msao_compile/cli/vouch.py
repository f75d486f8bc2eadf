"""`keygen` and `sign`: who vouches for a receipt or a deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msao_compile.cli import draw
from msao_compile.cli.options import Json, Quiet
from msao_compile.cli.talk import talk_of


def keygen(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The private key to write (PEM).", show_default=False)],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make an Ed25519 key pair: FILE for signing, and FILE's .pub.pem for those who are to trust it."""
    from msao_compile.manifest.signature import make_key

    talk = talk_of(context, as_json, quiet)
    public, name = make_key(path)
    facts = {"private": str(path), "public": str(public), "key": name}
    talk.reply(facts, lambda: draw.line(str(public)))
    talk.say(f"key {name}; keep {path} to yourself and give {public} to those who are to trust it")


def sign(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="A receipt.json, or a deployment's folder.", show_default=False),
    ],
    key: Annotated[Path, typer.Option(metavar="FILE", help="The private key that keygen wrote.", show_default=False)],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a signature beside a file, over its exact bytes; of a deployment over its manifest, which holds the digest
    of every other file."""
    from msao_compile.manifest.schema import MANIFEST_NAME
    from msao_compile.manifest.signature import sign as signed

    talk = talk_of(context, as_json, quiet)
    written = signed(path / MANIFEST_NAME if path.is_dir() else path, key)
    talk.reply({"signature": str(written)}, lambda: draw.line(str(written)))
