"""Stream one module's weights from the checkpoint into its data file: one tensor in memory at a time, no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msao_compile.families.checkpoint import read_pieces
from msao_compile.families.conversion import CONVERTED


def run(arguments: dict[str, Any], on_progress: Any) -> dict[str, Any]:
    """Write `arguments["tensors"]` to `arguments["output"]` at their offsets."""
    folder, output = Path(arguments["checkpoint"]), Path(arguments["output"])
    written, own = 0, arguments["tensors"]
    with output.open("wb") as file:
        for index, entry in enumerate(own):
            file.seek(entry["offset"])
            place = Path(arguments["converted"]).parent if entry["source"]["file"] == CONVERTED else folder
            written += sum(file.write(piece.data) for piece in read_pieces(place, entry["source"]))
            on_progress({"done": index + 1, "total": len(own)})
        file.truncate(arguments["size_bytes"])
    return {"bytes_written": written}
