"""What a fit is to a deployment: its manifest with MAS and speculation, and the evidence beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msao_compile.manifest.digest import sha256_bytes
from msao_compile.manifest.fit_evidence import MasEvidence
from msao_compile.manifest.mas import Mas
from msao_compile.manifest.offload import Speculation
from msao_compile.manifest.schema import SCHEMA_MAJOR, SCHEMA_MINOR, Deployment, FileRef
from msao_compile.store.manifest import drop_signature, exchange, exchange_manifest

EVIDENCE = "mas"
PLACES = ("evidence/mas.json", "evidence/mas.1.json")
"""Two names take turns: until the manifest is exchanged, the old one finds its own evidence whole."""


def fitted(deployment: Deployment, value: Mapping[str, Any], evidence: FileRef) -> Deployment:
    """The deployment with what the stage `fit` returned, and the file that holds its evidence."""
    mas = Mas.model_validate(value["mas"]).model_copy(update={"evidence": evidence})
    entry = Speculation.model_validate(value["speculation"]).model_copy(update={"evidence": evidence})
    entries = tuple(entry if one.task == entry.task else one for one in deployment.speculation)
    changes = {
        "schema_version": f"{SCHEMA_MAJOR}.{SCHEMA_MINOR}", "mas": mas, "speculation": entries,
        "evidence": {**deployment.evidence, EVIDENCE: evidence},
    }  # fmt: skip
    return Deployment.model_validate(deployment.model_copy(update=changes).model_dump())


def evidence_text(content: MasEvidence) -> str:
    """The file `evidence/mas.json`."""
    return json.dumps(content.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"


def write(folder: Path, deployment: Deployment, value: Mapping[str, Any]) -> Deployment:
    """Bring a fit into a deployment folder: the evidence first, then the manifest in one step."""
    data = evidence_text(MasEvidence.model_validate(value["evidence"])).encode()
    before = deployment.evidence.get(EVIDENCE)
    place = next(place for place in PLACES if before is None or place != before.path)
    reference = FileRef(path=place, sha256=sha256_bytes(data), size_bytes=len(data))
    after = fitted(deployment, value, reference)
    exchange(folder / reference.path, data)
    exchange_manifest(folder, after)
    if before is not None:
        (folder / before.path).unlink(missing_ok=True)
    drop_signature(folder)
    return after
