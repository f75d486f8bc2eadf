"""The objects of one build: what stages left, checkpoint files as they are, and evidence, each known by its digest."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from msao_compile.errors import InputError, StageError
from msao_compile.manifest.digest import canonical_json, sha256_bytes
from msao_compile.manifest.receipt import Receipt
from msao_compile.manifest.schema import Deployment, FileRef, Frozen
from msao_compile.manifest.signature import refuse_untrusted
from msao_compile.runner import Runner
from msao_compile.stages import emit
from msao_compile.stages.compose import Object
from msao_compile.stages.kit import accept
from msao_compile.stages.kit.pack import BoundsBy
from msao_compile.store.record import Blob, Record

logger = logging.getLogger(__name__)


class Stock:
    """Keeps every object that the deployment may name."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.blobs: dict[str, Blob] = {}
        self.receipts: dict[str, list[Receipt]] = {}
        """Those that were taken in, by target, the newest first."""
        self._shared: dict[str, Path] = {}

    def digest(self, path: Path) -> str:
        """SHA-256 of a file outside the store."""
        return self.runner.inputs.digest(path)

    def digest_all(self, paths: list[Path]) -> str:
        """One digest of several files and their names."""
        return sha256_bytes(canonical_json([[path.name, self.digest(path)] for path in paths]))

    def put(self, path: Path) -> Object:
        """A file as it is; copied into the store unless it is there already and whole, or this is a plan."""
        blob = Blob(sha256=self.digest(path), size_bytes=path.stat().st_size)
        if not self.runner.planning and not self.runner.store.holds(blob):
            blob = self.runner.store.put_file(path, move=False)
        return self._keep(blob)

    def share(self, path: Path) -> Object:
        """A large file as it is: linked into the store, or copied where that cannot be.

        Raises:
            StageError: it changed in between.
        """
        blob = Blob(sha256=self.digest(path), size_bytes=path.stat().st_size)
        self._shared[blob.sha256] = path
        if not self.runner.planning and not self.runner.store.holds(blob):
            self.runner.store.share_file(path, blob)
            if self.digest(path) != blob.sha256:  # read again only where its time, size or inode changed
                raise StageError(f"{path}: changed while it was read; build again when nothing writes to it")
        return self._keep(blob)

    def output(self, record: Record | None, name: str) -> Object | None:
        """What a stage left under `name`; None in a plan where it has not run."""
        return None if record is None else self._keep(record.outputs[name])

    def evidence(self, name: str, content: Frozen) -> FileRef:
        """Evidence as a JSON file of the deployment."""
        with self.runner.store.workspace() as folder:
            path = folder / "evidence.json"
            path.write_text(
                json.dumps(content.model_dump(mode="json"), indent=1, sort_keys=True) + "\n", encoding="utf-8"
            )
            blob = self._keep(self.runner.store.put_file(path))
        return FileRef(path=f"evidence/{name}.json", sha256=blob.sha256, size_bytes=blob.size_bytes)

    def place(self, sha256: str, destination: Path) -> None:
        """Link an object to where a stage reads it."""
        self.runner.store.materialise(self.blobs[sha256], destination)

    def accept(self, deployment: Deployment, path: Path, engines: Path, bounds: BoundsBy) -> Deployment:
        """The deployment with a device's receipt; the engines that it names stand below the folder `engines`.

        After a newer one of its target it counts for the modules that this one does not name, on the same device.

        Raises:
            DeploymentError: the receipt is damaged or of something else, or is not signed as the options want.
        """
        if self.runner.options.trusted_keys is not None:
            refuse_untrusted(path, self.runner.options.trusted_keys)
        receipt = self._left(path)
        if receipt is None:
            return deployment
        accept.merged(deployment, receipt, {}, bounds)  # of this deployment, before any file is looked at
        for file in accept.engine_files(deployment, receipt, engines).values():
            self.put(file)
        newer, evidence = self.receipts.get(receipt.target, []), {}
        for name, (place, file) in accept.evidence_files(receipt, path, len(newer)).items():
            held = self.put(file)
            evidence[name] = FileRef(path=place, sha256=held.sha256, size_bytes=held.size_bytes)
        self.receipts[receipt.target] = [*newer, receipt]
        return accept.merged(deployment, receipt, evidence, bounds)

    def _left(self, path: Path) -> Receipt | None:
        """What of a receipt counts beside the newer ones of its target; None where that is nothing."""
        receipt = accept.read_receipt(path)
        newer = self.receipts.get(receipt.target)
        if not newer:
            return receipt
        return accept.remaining(receipt, newer[0], {module.name for one in newer for module in one.modules})

    def accept_again(self, deployment: Deployment, folder: Path, bounds: BoundsBy) -> Deployment:
        """The deployment with the receipts that an earlier build took in, where they are still of what is built now."""
        for path in accept.kept_receipts(folder):
            try:
                if self._left(path) is not None:
                    deployment = self.accept(deployment, path, folder, bounds)
            except InputError as error:
                logger.warning("%s is not taken over: %s", path, error)
        return deployment

    def deploy(self, folder: Path, manifest: Deployment) -> None:
        """Write a deployment folder from the objects kept here."""
        emit.write(folder, manifest, self.runner.store, self.blobs.values())

    def copied(self, folder: Path, manifest: Deployment) -> int:
        """Bytes of shared files that a deployment holds once more, on a file system without their links."""
        data = {file for module in manifest.modules for graph in module.graphs for file in graph.data}
        shared = [(folder / file.path, self._shared[file.sha256]) for file in data if file.sha256 in self._shared]
        return sum(held.stat().st_size for held, original in shared if not held.samefile(original))

    def _keep(self, blob: Blob) -> Object:
        self.blobs[blob.sha256] = blob
        return Object(blob.sha256, blob.size_bytes)


def result(record: Record) -> dict[str, Any]:
    """What a stage returned: always a JSON object."""
    value = record.payload["result"]
    assert isinstance(value, dict)  # every stage's `run` is annotated so
    return dict(value)
