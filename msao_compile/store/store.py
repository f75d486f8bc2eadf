"""The content-addressed store: what was asked for leads to what came out, whole or not at all.

root/
  objects/<aa>/<sha256>        bytes, read-only, named by their content
  records/<kind>/<digest>.json what came out of the request with that key digest
  verified/                    see verified.py
  workspaces/                  where stages write, and where files wait until they are complete
  locks/                       `store.lock`: users share it, a collection has it alone;
                               `keys/<digest>.lock`: one builder a key
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from msao_compile.errors import StageError
from msao_compile.manifest.digest import canonical_json, sha256_file
from msao_compile.store import files, locks, record, workspace
from msao_compile.store.key import Key
from msao_compile.store.record import Blob, Collected, Damage, Record
from msao_compile.store.verified import Verified

Verify = Literal["size", "digest"]

logger = logging.getLogger(__name__)


class Store:
    """A store in the folder `root`, which is made by the first call that writes.

    Hold `in_use()` for as long as records that no deployment names yet must survive a garbage collection: a build holds
    it from its first stage to its written deployment.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._verified = Verified(self.root / "verified")

    # who may do what, when

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep garbage collections away for the length of the block, and clear up after processes that died.

        Raises:
            StageError: the store's folder cannot be written.
        """
        with self._shared():
            with files.translated("clearing up", self.root):
                workspace.sweep(self._workspaces)
            yield

    @contextmanager
    def building(self, key: Key, verify: Verify = "size") -> Iterator[Record | Damage | None]:
        """Be the only one who builds `key`; gives what `lookup` finds once nobody else does.

        Whoever comes second waits, and then finds the record of the first: a Record means that there is nothing to do.

        Raises:
            StageError: the store's folder cannot be written.
        """
        with self._shared(), self._lock(f"keys/{key.digest}.lock") as handle:
            locks.wait(handle, fcntl.LOCK_EX, f"waiting for another build of {key.kind} {key.subject or key.digest}")
            yield self.lookup(key, verify)

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A folder to write in, on the store's own file system so that `commit` only renames; removed at the end.

        Raises:
            StageError: the disk became full inside the block.
        """
        with self._shared():
            try:
                with workspace.workspace(self._workspaces) as folder:
                    yield folder
            except OSError as error:
                if error.errno not in files.FULL:
                    raise
                where = Path(error.filename) if isinstance(error.filename, str) else self.root
                raise StageError(files.full("writing", where, None)) from error

    @contextmanager
    def _shared(self) -> Iterator[None]:
        with self._lock("store.lock") as handle:
            locks.wait(handle, fcntl.LOCK_SH, f"waiting for the garbage collection of {self.root} to end")
            yield

    @contextmanager
    def _lock(self, name: str) -> Iterator[int]:
        with ExitStack() as held:
            with files.translated("opening the store", self.root):
                handle = held.enter_context(locks.opened(self.root / "locks" / name))
            yield handle

    # writing

    def put_file(self, path: Path, move: bool = True) -> Blob:
        """Store a file's bytes; with `move` the file itself becomes the object where that needs no copy.

        Raises:
            StageError: the file is not there, or the disk is full; nothing half-written stays.
        """
        with self._shared(), files.translated(f"storing {path.name}", self.root, _size_of(path)):
            files.make_folder(self.root / "objects")
            if move and files.movable(path, self.root / "objects"):
                return self._place(path)
            with workspace.workspace(self._workspaces) as folder:
                copy = folder / "copy"
                shutil.copyfile(path, copy)
                blob = self._place(copy)
            if move:
                path.unlink()
            return blob

    def share_file(self, path: Path, blob: Blob) -> None:
        """Make a file that was hashed an object under a second name, so that no byte is written; else copy it.

        The object is not read-only then: it is the owner's file. Whoever writes into it damages the object, which
        every look at it notices as it does any other damage.

        Raises:
            StageError: the disk is full.
        """
        with self._shared(), files.translated(f"storing {path.name}", self.root, blob.size_bytes):
            destination = self.path(blob)
            files.link_or_copy(path.resolve(), destination)  # a link to a symbolic link would be one
            if destination.samefile(path):
                self._verified.remember(blob.sha256, destination.stat())

    def _place(self, source: Path) -> Blob:
        blob = Blob(sha256=sha256_file(source), size_bytes=source.stat().st_size)
        destination = self.path(blob)
        # The bytes are at hand, so an object that is there already is held to its full digest: damaged, it is replaced.
        if destination.is_file() and sha256_file(destination) == blob.sha256:
            source.unlink()
        else:
            files.place(source, destination)
        self._verified.remember(blob.sha256, destination.stat())
        return blob

    def commit(self, key: Key, outputs: Mapping[str, Path], payload: Mapping[str, JsonValue]) -> Record:
        """Move the outputs into the store and then write the record: after a crash there is a whole record or none.

        Raises:
            StageError: an output is not a file, the payload is not plain JSON, or the disk is full.
        """
        try:
            canonical_json(payload)
        except (TypeError, ValueError) as error:
            raise StageError(f"stage {key.stage} left a payload that has no JSON form: {error}") from error
        for name, path in outputs.items():
            if not path.is_file():
                raise StageError(f"stage {key.stage} promised the output '{name}', but left no file {path}")
        with self._shared():
            blobs = {path: self.put_file(path) for path in dict.fromkeys(outputs.values())}
            named = {name: blobs[path] for name, path in outputs.items()}
            done = Record(key=key, outputs=named, payload=payload)
            with files.translated("writing a record", self.root), workspace.workspace(self._workspaces) as folder:
                written = folder / "record.json"
                written.write_bytes(record.encode(done))
                files.place(written, self._record_file(key.kind, key.digest))
        return done

    # reading

    def path(self, blob: Blob) -> Path:
        """Where an object lies; read it, never write to it."""
        return self._object(blob.sha256)

    def peek(self, key: Key, verify: Verify = "size") -> Record | Damage | None:
        """What `lookup` would answer, without changing anything on disk: for plans.

        Raises:
            StageError: something in the store cannot be read.
        """
        with files.translated("looking up a record", self.root):
            found = record.read(self._record_file(key.kind, key.digest), key.digest)
            if isinstance(found, Record):
                return next(self._damages(found, verify), found)
            return found

    def lookup(self, key: Key, verify: Verify = "size") -> Record | Damage | None:
        """The record of a request; None where it was never built; or the first damage, all damaged objects forgotten.

        "size" compares sizes. "digest" also hashes each object that changed on disk since it was hashed last (see
        `Verified` for what that cannot see). A forgotten object is rebuilt by building this key again; others stay.

        Raises:
            StageError: something in the store cannot be read.
        """
        with files.translated("looking up a record", self.root):
            found = record.read(self._record_file(key.kind, key.digest), key.digest)
            if not isinstance(found, Record):
                if found is not None:
                    self._record_file(key.kind, key.digest).unlink(missing_ok=True)
                return found
            damages = list(self._damages(found, verify, remember=True))
            for damage in damages:
                self._forget(damage)
            return damages[0] if damages else found

    def holds(self, blob: Blob) -> bool:
        """Whether an object is there and whole; it is hashed only where it changed since it was hashed last.

        Raises:
            StageError: something in the store cannot be read.
        """
        with files.translated("looking up an object", self.root):
            return self._fault(blob, "digest", trust=True, remember=True) is None

    def records(self, kind: str) -> list[Record]:
        """The undamaged records of a kind, the most recent first.

        Raises:
            StageError: the folder of records cannot be read.
        """
        with files.translated("listing records", self.root):
            paths = sorted((self.root / "records" / kind).glob("*.json"), key=lambda path: -path.stat().st_mtime_ns)
            found = [record.read(path, path.stem) for path in paths]
        return [one for one in found if isinstance(one, Record)]

    def materialise(self, blob: Blob, destination: Path) -> None:
        """Put an object at a path outside the store, whole or not at all: a hard link, or a copy where that is refused.

        Raises:
            StageError: the object is gone, or the destination cannot be written.
        """
        source = self.path(blob)
        if not source.is_file():
            raise StageError(f"the store {self.root} no longer has object {blob.sha256}: build again")
        with self._shared(), files.translated(f"writing {destination.name}", destination.parent, blob.size_bytes):
            files.link_or_copy(source, destination)

    # caring

    def verify(self) -> list[Damage]:
        """Read every byte and report all damage, without changing anything on disk; `collect` removes what is damaged.

        Raises:
            StageError: something in the store cannot be read.
        """
        with files.translated("verifying", self.root):
            damages: list[Damage] = []
            named: set[str] = set()
            for path in sorted((self.root / "records").glob("*/*.json")):
                found = record.read(path, path.stem)
                if isinstance(found, Record):
                    damages += self._damages(found, "digest", trust=False)
                    named |= {blob.sha256 for blob in found.outputs.values()}
                elif found is not None:
                    damages.append(found)
            return damages + self._damaged_orphans(named)

    def collect(self, keep: AbstractSet[str], wait_seconds: float = 0.0) -> Collected:
        """Remove what nobody names, and every damaged object, so that the next build makes it again: reads every byte.

        Kept are the records whose key digest is in `keep`, the objects whose SHA-256 is in `keep`, the outputs of kept
        records, and the records all of whose outputs are kept. Bytes that a deployment shares through a hard link do
        not become free and do not count.

        Raises:
            StageError: the store is still in use after `wait_seconds`, or something cannot be removed.
        """
        with self._lock("store.lock") as handle:
            if not locks.wait_at_most(handle, fcntl.LOCK_EX, wait_seconds):
                raise StageError(f"the store {self.root} is in use by a build: collect when that has ended")
            with files.translated("collecting", self.root):
                workspace.sweep(self._workspaces)
                return self._collect(set(keep))

    def _collect(self, keep: set[str]) -> Collected:
        removed: list[Path] = []
        for path in (self.root / "records").glob("*/*.json"):
            found = record.read(path, path.stem)
            outputs = {blob.sha256 for blob in found.outputs.values()} if isinstance(found, Record) else set()
            if isinstance(found, Record) and (found.digest in keep or (outputs and outputs <= keep)):
                keep |= outputs
            else:
                removed.append(path)
        # Records go before objects: a crash in between leaves objects too many, never a record without its objects.
        removed += [path for path in self._objects() if path.name not in keep or self._is_damaged(path)]
        freed = 0
        for path in removed:
            status = path.stat()
            freed += status.st_size if status.st_nlink == 1 else 0
            path.unlink()
            self._verified.forget(path.name)
        for lock in (self.root / "locks" / "keys").glob("*.lock"):
            lock.unlink()
        return Collected(count=len(removed), size_bytes=freed, kept_objects=len(self._objects()))

    def _is_damaged(self, path: Path) -> bool:
        damage = self._hashed(path, path.stat(), remember=False)
        if damage is not None:
            logger.warning("%s", damage)
        return damage is not None

    def _damages(self, found: Record, verify: Verify, trust: bool = True, remember: bool = False) -> Iterator[Damage]:
        for output, blob in found.outputs.items():
            fault = self._fault(blob, verify, trust, remember)
            if fault is not None:
                about = {
                    "output": output,
                    "kind": found.key.kind,
                    "key_digest": found.digest,
                    "subject": found.key.subject,
                }
                yield fault.model_copy(update=about)

    def _fault(self, blob: Blob, verify: Verify, trust: bool, remember: bool) -> Damage | None:
        path = self.path(blob)
        try:
            status = path.stat()
        except FileNotFoundError:
            return Damage(reason="missing", detail="is missing", sha256=blob.sha256)
        if status.st_size != blob.size_bytes:
            detail = f"has {status.st_size} bytes where {blob.size_bytes} were stored"
            return Damage(reason="size", detail=detail, sha256=blob.sha256)
        if verify == "size" or (trust and self._verified.knows(blob.sha256, status)):
            return None
        return self._hashed(path, status, remember)

    def _hashed(self, path: Path, status: os.stat_result, remember: bool) -> Damage | None:
        found = sha256_file(path)
        if found != path.name:
            return Damage(reason="digest", detail=f"has changed: its bytes are now {found}", sha256=path.name)
        if remember:
            self._verified.remember(path.name, status)
        return None

    def _damaged_orphans(self, named: set[str]) -> list[Damage]:
        faults = (self._hashed(path, path.stat(), remember=False) for path in self._objects() if path.name not in named)
        return [fault for fault in faults if fault is not None]

    def _forget(self, damage: Damage) -> None:
        logger.warning("%s", damage)
        path = self._object(damage.sha256)
        # Another process may have built it again since it was found damaged.
        if path.is_file() and sha256_file(path) != damage.sha256:
            path.unlink(missing_ok=True)

    @property
    def _workspaces(self) -> Path:
        return self.root / "workspaces"

    def _objects(self) -> list[Path]:
        return sorted((self.root / "objects").glob("??/*"))

    def _object(self, sha256: str) -> Path:
        return self.root / "objects" / sha256[:2] / sha256

    def _record_file(self, kind: str, digest: str) -> Path:
        return self.root / "records" / kind / f"{digest}.json"


def _size_of(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None
