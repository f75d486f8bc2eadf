"""A file below one folder and nowhere else, whatever links lie in it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from msao_compile.errors import PictureError
from msao_compile.runtime.preprocess.decode import MAX_BYTES


def read_below(folder: Path, path: Path) -> bytes:
    """The bytes of an ordinary file at an absolute path, if it truly lies below `folder`.

    The path is resolved first and then walked without following links, so one that is swapped in between is refused.
    A file outside is refused with the words for one that is not there: nobody learns what lies elsewhere.

    Raises:
        PictureError: it does not lie below the folder, is no ordinary file, is too large, or cannot be read.
    """
    refused = f"there is no picture {str(path)!r} below {folder}: give the path of a file in that folder"
    try:
        root = folder.resolve(strict=True)
        inside = path.resolve(strict=True).relative_to(root)
        descriptor = _walk(root, inside)
    except (OSError, ValueError, RuntimeError) as error:
        raise PictureError(refused) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PictureError(refused)
    with os.fdopen(descriptor, "rb") as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise PictureError(f"{path} has more than {MAX_BYTES} bytes; make the picture smaller.")
    return content


def _walk(root: Path, inside: Path) -> int:
    """A descriptor of the file, opened one folder after the other; a pipe is opened without waiting for a writer."""
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for index, part in enumerate(inside.parts):
        last = index == len(inside.parts) - 1
        kind = os.O_NONBLOCK if last else os.O_DIRECTORY
        try:
            below = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | kind, dir_fd=here)
        finally:
            os.close(here)
        here = below
    return here
