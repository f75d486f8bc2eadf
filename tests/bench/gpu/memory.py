"""Device memory while the check runs, by the driver's own tool: the same measure for every peer, context included."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Sequence
from threading import Thread
from types import TracebackType

EVERY_MS = 200
MIB = 1 << 20


class Watch:
    """Samples of the memory in use on the first card, in a thread; none where there is no tool to ask."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, int]] = []
        self._child: subprocess.Popen[str] | None = None

    def __enter__(self) -> Watch:
        if shutil.which("nvidia-smi") is not None:
            command = ["nvidia-smi", "-i", "0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
            self._child = subprocess.Popen(
                [*command, "-lms", str(EVERY_MS)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child is not None:
            self._child.terminate()
            self._child.wait()

    def _read(self) -> None:
        assert self._child is not None and self._child.stdout is not None  # it was just started with a pipe
        for line in self._child.stdout:
            if line.strip().isdigit():
                self.samples.append((time.time(), int(line) * MIB))


def peak_bytes(samples: Sequence[tuple[float, int]], window: Sequence[float]) -> int | None:
    """The most in use within a window of time, less the least ever seen; None where nothing was sampled then."""
    inside = [used for moment, used in samples if window[0] <= moment <= window[1]]
    return max(inside) - min(used for _, used in samples) if inside else None
