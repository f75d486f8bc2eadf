"""The arguments and options that several commands share, each written once."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msao_compile.errors import InputError

if TYPE_CHECKING:
    from msao_compile.runtime.policy import Wishes
    from msao_compile.runtime.wire.kserve.options import LinkOptions

NUMBER = re.compile(r"\d+(\.\d+)?")
DEPLOYMENTS = Path("artifacts/deployments")
STORE = Path("artifacts/store")

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; all talk goes to stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Results and errors only, no progress and no remarks.")]

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file (TOML).", show_default=False)]
DeploymentFolder = Annotated[
    Path, typer.Argument(metavar="DEPLOYMENT", help="A folder that holds a deployment.json.", show_default=False)
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where deployments are written.")]
StoreFolder = Annotated[Path, typer.Option("--store", metavar="DIR", help="The content-addressed store.")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", metavar="N", min=1, help="Stages that run at the same time.")]
Frozen = Annotated[
    bool, typer.Option("--frozen", help="Hub checkpoints only as the lock file pins them; refuse to resolve others.")
]


def unset(metavar: str, words: str, *names: str) -> typer.models.OptionInfo:
    """An option without a value of its own; it is named as its parameter where `names` are not given."""
    found: typer.models.OptionInfo = typer.Option(*names, metavar=metavar, help=words, show_default=False)
    return found


Targets = Annotated[list[str] | None, unset("T", "Only this target; may be repeated.", "--target", "-t")]
Modules = Annotated[list[str] | None, unset("M", "Only this component; may be repeated.", "--module", "-m")]
Receipts = Annotated[
    list[Path] | None,
    unset("FILE", "Take in what a device proved: a receipt.json with its engines/ beside it; may be repeated.",
          "--accept-receipt"),
]  # fmt: skip
TrustedKeys = Annotated[
    Path | None, unset("PATH", "Refuse receipts that no key in this file or folder signed.", "--trusted-keys")
]
CloudAddress = Annotated[
    str | None,
    typer.Option(
        "--cloud", metavar="URL", show_default=False,
        help="The cloud that serves the same deployment: grpc://host:port, grpcs://, http:// or https://.",
    ),
]  # fmt: skip
CloudToken = Annotated[
    Path | None,
    typer.Option("--cloud-token-file", metavar="FILE", help="The token to show the cloud.", show_default=False),
]
CloudRoots = Annotated[
    Path | None,
    typer.Option(
        "--cloud-roots", metavar="FILE", help="PEM certificates to trust the cloud by, not the system's.",
        show_default=False,
    ),
]  # fmt: skip

CloudPatience = Annotated[
    float | None,
    typer.Option(
        "--cloud-patience", metavar="S", min=0.1, show_default="30",
        help="Seconds that an answer waits for its next token, before the edge finishes it unverified where the route "
        "allows that; three times so long where not.",
    ),
]  # fmt: skip

Calibrated = Annotated[
    float | None,
    typer.Option(
        "--calibrated", metavar="EPS", min=0.0, max=1.0, show_default=False,
        help="Allow this loss of right answers, as far as `fit` bounded it; without it answers are the cloud's own.",
    ),
]  # fmt: skip

Wish = Annotated[
    list[str] | None,
    typer.Option(
        "--wish", metavar="W=N", show_default=False,
        help="What auto weighs beside time; may be repeated: within=MS (a deadline), and for how many ms of waiting "
        "what is worth: cloud=N and edge=N (1 ms of work there), byte=N (1 byte that crosses).",
    ),
]  # fmt: skip
WISHES = {"within": "deadline_ms", "cloud": "cloud_price", "edge": "edge_price", "byte": "byte_price"}


def wishes_of(given: list[str] | None, cloud: str | None) -> Wishes:
    """What the options say beside time.

    Raises:
        InputError: one is not of the form NAME=N with a known name and a number from 0 on, or is given twice, or there
            is no cloud, and so nothing to weigh.
    """
    from msao_compile.runtime.policy import Wishes

    if given and cloud is None:
        raise InputError("--wish belongs to a cloud: give --cloud as well")

    found: dict[str, float] = {}
    for wish in given or ():
        name, _, value = wish.partition("=")
        field = WISHES.get(name.strip())
        number = float(value) if NUMBER.fullmatch(value.strip()) else None
        if field is None or number is None or field in found:
            raise InputError(f"--wish {wish}: give each of {', '.join(WISHES)} once at most, as in --wish cloud=0.5")
        found[field] = number
    return Wishes(**found)


def link_options(
    cloud: str | None, token_file: Path | None, roots: Path | None, patience_s: float | None
) -> LinkOptions | None:
    """What the options say of the link to a cloud; None without one.

    Raises:
        InputError: the token cannot be read or used, or something is given without a cloud.
    """
    given = {"--cloud-token-file": token_file, "--cloud-roots": roots, "--cloud-patience": patience_s}
    if cloud is None:
        if any(value is not None for value in given.values()):
            raise InputError(f"{', '.join(given)} belong to a cloud: give --cloud as well")
        return None
    from msao_compile.runtime.wire.kserve.options import LinkOptions

    try:
        token = None if token_file is None else token_file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise InputError(f"--cloud-token-file: {token_file} cannot be read as text ({error}): write it anew") from error
    try:
        options = LinkOptions(token=token or None, roots=roots)
    except InputError as error:
        raise InputError(f"--cloud-token-file {token_file}: {error}") from error
    return options if patience_s is None else replace(options, patience_s=patience_s)
