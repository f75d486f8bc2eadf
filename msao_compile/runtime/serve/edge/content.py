"""A request's messages as the runtime takes them: parts, and the bytes of the pictures in their order."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from msao_compile.errors import PictureError
from msao_compile.runtime.preprocess.decode import count_pixels
from msao_compile.runtime.serve.edge.errors import Fault, Refusal
from msao_compile.runtime.serve.edge.files import read_below
from msao_compile.runtime.serve.edge.limits import Limits
from msao_compile.runtime.serve.edge.schema import ImagePart, Message

DATA = re.compile(r"data:(image/[\w.+-]+)?((?:;[\w.+-]+=[\w.+-]+)*);base64,", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Sources:
    """Where pictures may come from: the request itself, and files below `files` if that is given."""

    limits: Limits
    files: Path | None = None

    def unfold(self, messages: Sequence[Message]) -> tuple[list[dict[str, Any]], list[bytes]]:
        """The conversation and its pictures.

        Raises:
            Refusal: a picture is missing, too large, from elsewhere, or not where pictures may stand.
        """
        turns: list[dict[str, Any]] = []
        pictures: list[bytes] = []
        for index, message in enumerate(messages):
            role = "system" if message.role == "developer" else message.role
            content = message.content
            parts: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else []
            for number, part in enumerate(() if isinstance(content, str) else content):
                if isinstance(part, ImagePart):
                    where = f"messages[{index}].content[{number}]"
                    self._check_place(role, len(pictures), where)
                    pictures.append(self._picture(part.image_url.url, f"{where}.image_url.url"))
                    parts.append({"type": "image"})
                else:
                    parts.append({"type": "text", "text": part.text})
            turns.append({"role": role, "content": parts})
        return turns, pictures

    def _check_place(self, role: str, count: int, where: str) -> None:
        if role != "user":
            said = f"{where} is a picture in a message of {role}: put it into one of the user"
            raise Refusal(Fault(400, said, where, "invalid_value"))
        if count >= self.limits.pictures:
            said = f"{where} is a picture beyond the {self.limits.pictures} that a request may have: send fewer"
            raise Refusal(Fault(400, said, where, "too_many_images"))

    def _picture(self, url: str, where: str) -> bytes:
        try:
            content = self._content(url)
            pixels = count_pixels(content, where)
        except PictureError as error:
            raise Refusal(Fault(400, str(error), where, "invalid_image")) from error
        if pixels > self.limits.pixels:
            said = f"{where} has {pixels} pixels, above the limit of {self.limits.pixels}: make the picture smaller"
            raise Refusal(Fault(400, said, where, "image_too_large"))
        return content

    def _content(self, url: str) -> bytes:
        scheme = url[:16].partition(":")[0].lower()
        if scheme == "data":
            return _data(url)
        if scheme == "file":
            return self._file(url)
        if scheme in ("http", "https"):
            raise PictureError("this server fetches no pictures from the network: send the picture as a data: URL")
        raise PictureError("a picture's url is neither data: nor file:; send it as data:image/png;base64,...")

    def _file(self, url: str) -> bytes:
        if self.files is None:
            raise PictureError(
                "this server reads no files: send the picture as a data: URL, or start it with --allow-files FOLDER"
            )
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise PictureError(f"a picture's url cannot be read ({error}): give file:///path/of/picture.png") from error
        if parts.netloc not in ("", "localhost") or parts.query or parts.fragment or not parts.path.startswith("/"):
            raise PictureError("a picture's file: url is not of this machine's form: give file:///path/of/picture.png")
        return read_below(self.files, Path(unquote(parts.path)))


def _data(url: str) -> bytes:
    head = DATA.match(url)
    if head is None:
        raise PictureError("a picture's data: url is not of the form data:image/png;base64,...: correct it")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except ValueError as error:
        raise PictureError(f"the base64 of a picture's data: url is damaged ({error}): encode it again") from error
