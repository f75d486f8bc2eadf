"""Keys to ask a store for, and a way to damage what it holds."""

import os

from msao_compile.store.key import Key
from msao_compile.store.record import Blob
from msao_compile.store.store import Store


def key(subject: str = "edge/vision_encoder", version: int = 1, **fields: str) -> Key:
    """A request that differs with every argument: two subjects alone would ask for the same."""
    return Key(kind="export", stage="export", version=version, fields={"subject": subject, "module": subject, **fields})


def flip_a_byte(store: Store, blob: Blob) -> None:
    """Change one byte of an object in place, leaving its size and modification time as they were."""
    path = store.path(blob)
    status = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as stream:
        first = stream.read(1)
        stream.seek(0)
        stream.write(bytes([first[0] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
