"""Everything the report page is made from: the manifest and the evidence its claims rest on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from msao_compile.errors import DeploymentError
from msao_compile.manifest.evidence import BuildEvidence, MeasureEvidence, ParityEvidence
from msao_compile.manifest.fit_evidence import MasEvidence
from msao_compile.manifest.schema import Deployment, Frozen
from msao_compile.runtime.loader import locate, read_manifest

Kind = TypeVar("Kind", bound=Frozen)


@dataclass(frozen=True)
class Source:
    """A deployment and its evidence; None is evidence that was not made."""

    deployment: Deployment
    parity: ParityEvidence | None
    measure: MeasureEvidence | None
    build: BuildEvidence | None
    mas: MasEvidence | None = None

    def users(self, module_id: str) -> tuple[str, ...]:
        """The models that are made of a module."""
        return tuple(model.name for model in self.deployment.models if module_id in model.components.values())


def read_source(folder: Path) -> Source:
    """Read a deployment folder; evidence is held to its recorded digest.

    Raises:
        DeploymentError: the manifest or a piece of evidence is missing, damaged or not valid.
    """
    manifest = read_manifest(folder)
    return Source(
        deployment=manifest,
        parity=_evidence(folder, manifest, "parity", ParityEvidence),
        measure=_evidence(folder, manifest, "measure", MeasureEvidence),
        build=_evidence(folder, manifest, "build", BuildEvidence),
        mas=_evidence(folder, manifest, "mas", MasEvidence),
    )


def _evidence(folder: Path, manifest: Deployment, name: str, kind: type[Kind]) -> Kind | None:
    ref = manifest.evidence.get(name)
    if ref is None:
        return None
    path = locate(folder, ref)
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DeploymentError(f"{path}: {where}: {first['msg']}; build the deployment again") from error
