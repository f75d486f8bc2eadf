"""A deployment with measured times, and the devices file beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cli import fixtures

from msao_compile.manifest.schema import Deployment
from msao_compile.runtime.loader import read_manifest

FLAT = {"fixed_ms": 0.0, "each_ms": 0.0}


def line(fixed_ms: float, each_ms: float) -> dict[str, float]:
    """A time that grows."""
    return {"fixed_ms": fixed_ms, "each_ms": each_ms}


def primitives(model: str, factor: float) -> dict[str, Any]:
    """6 ms for a picture and its preparation, 100 + 1 a token for a prompt, 20 for a token, times a factor."""
    times = {"prepare": (1.0, 0.0), "encode": (0.0, 5.0), "prefill": (100.0, 1.0), "decode": (0.0, 20.0)}
    found = {name: line(*(factor * value for value in values)) for name, values in times.items()}
    return {"model": model, **found, "verify": FLAT}


def measured(folder: Path) -> Deployment:
    """The synthetic deployment of the command line's tests, measured."""
    folder.mkdir(parents=True, exist_ok=True)
    fixtures.deployment(folder)
    path = folder / "deployment.json"
    times = [primitives("edge", 1.0), primitives("cloud", 2.0)]
    path.write_text(json.dumps({**json.loads(path.read_text()), "primitives": times}))
    return read_manifest(folder)


def devices(**more: Any) -> dict[str, Any]:
    """A slow device and a fast server, asked by both models."""
    uses = [{"module": "edge.vision_encoder", "input_bytes": 100_000}]
    asked = {"task": "vqa", "source": "phone", "weight": 1.0, "reply_bytes": 100}
    return {
        "devices": [{"name": "phone", "memory_bytes": 1e9, "slower": 10.0}, {"name": "server", "memory_bytes": 4e9}],
        "links": [{"from": "phone", "to": "server", "rtt_ms": 10, "mbps": 80}],
        "requests": [
            {**asked, "encoders": uses, "head": "edge.decoder"},
            {**asked, "encoders": [{**uses[0], "module": "cloud.vision_encoder"}], "head": "cloud.decoder"},
        ],
        "work": {"prompt_tokens": 50, "new_tokens": 11},
        **more,
    }
