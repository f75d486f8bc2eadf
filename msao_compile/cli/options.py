"""The arguments and options that several commands share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
Targets = Annotated[
    list[str] | None,
    typer.Option("--target", "-t", metavar="T", help="Only this target; may be repeated.", show_default=False),
]
Modules = Annotated[
    list[str] | None,
    typer.Option("--module", "-m", metavar="M", help="Only this component; may be repeated.", show_default=False),
]
Receipts = Annotated[
    list[Path] | None,
    typer.Option(
        "--accept-receipt", metavar="FILE", show_default=False,
        help="Take in what a device proved: a receipt.json with its engines/ beside it; may be repeated.",
    ),
]  # fmt: skip
TrustedKeys = Annotated[
    Path | None,
    typer.Option(
        "--trusted-keys", metavar="PATH", help="Refuse receipts that no key in this file or folder signed.",
        show_default=False,
    ),
]  # fmt: skip
