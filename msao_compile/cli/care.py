"""`gc`: remove from the store what no deployment names."""

from __future__ import annotations

from pathlib import Path

import typer

from msao_compile.cli import draw, units
from msao_compile.cli.options import DEPLOYMENTS, STORE, Json, Out, Quiet, StoreFolder
from msao_compile.cli.talk import talk_of
from msao_compile.errors import InputError


def gc(
    context: typer.Context,
    out: Out = DEPLOYMENTS,
    store: StoreFolder = STORE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove from the store what no deployment under --out names; the next build makes it again where it needs it."""
    from msao_compile.store.store import Store

    talk = talk_of(context, as_json, quiet)
    if not (store / "objects").is_dir():
        raise InputError(f"{store}: is not a store; give the folder that `build --store` wrote")
    deployments, keep = named_objects(out)
    collected = Store(store).collect(keep)
    facts = {
        "store": str(store),
        "deployments": deployments,
        "kept_objects": collected.kept_objects,
        "removed": collected.count,
        "freed_bytes": collected.size_bytes,
    }
    sentence = (
        f"removed {units.plural(collected.count, 'file')}, freed {units.size(collected.size_bytes)}; "
        f"kept what {', '.join(deployments)} {'needs' if len(deployments) == 1 else 'need'}"
    )
    talk.reply(facts, lambda: draw.line(sentence))


def named_objects(out: Path) -> tuple[list[str], set[str]]:
    """The deployments under a folder, and the digests of every file and stage run that they name.

    Raises:
        InputError: there is none, because then everything would be removed.
        DeploymentError: one cannot be read, because what it needs is then unknown.
    """
    from msao_compile.manifest.evidence import BuildEvidence
    from msao_compile.manifest.schema import MANIFEST_NAME
    from msao_compile.runtime.loader import locate, read_manifest

    # A hidden folder is one that a killed build left half-written.
    folders = sorted(path.parent for path in out.glob(f"[!.]*/{MANIFEST_NAME}"))
    if not folders:
        raise InputError(
            f"{out}: holds no deployment, so everything would be removed; give the right --out, "
            "or delete the store's folder if that is what you want"
        )
    digests: set[str] = set()
    for folder in folders:
        manifest = read_manifest(folder)
        digests |= {ref.sha256 for ref in manifest.all_files().values()}
        if "build" in manifest.evidence:
            evidence = BuildEvidence.model_validate_json(locate(folder, manifest.evidence["build"]).read_bytes())
            digests |= {run.record for run in evidence.stages}
    return [folder.name for folder in folders], digests
