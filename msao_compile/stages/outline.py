"""What a model will cost, from its config.json alone: components, parameters, bytes and KV cache."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from msao_compile.families.checkpoint import read_config
from msao_compile.families.kv_cost import kv_cost
from msao_compile.families.outline import bytes_of, outline
from msao_compile.families.registry import open_checked


def run(arguments: dict[str, Any], on_progress: Any) -> dict[str, Any]:
    """Outline the model in folder `checkpoint`, which needs no weights; `trusted`: code in it may be run.

    Gives the architecture, parameters in all, `kv` (None where no tokens are generated) and per component its
    parameters with their names, its bytes by precision and how it was found.

    Raises:
        CheckpointError: no model can be made of the config, or it is refused.
    """
    folder = Path(arguments["checkpoint"])
    model = open_checked(folder, bool(arguments.get("trusted")))
    on_progress({"doing": "assign parameters"})
    parts = outline(model)
    cost = kv_cost(model.config) if any(part.component == "decoder" for part in parts) else None
    return {
        "architecture": type(model).__name__,
        "model_type": str(read_config(folder)["model_type"]),
        "params": sum(part.params for part in parts),
        "kv": None if cost is None else asdict(cost),
        "components": [
            {
                "component": part.component,
                "params": part.params,
                "bytes": bytes_of(part.params, part.matrix_params),
                "found_by": part.found_by,
                "parameters": list(part.parameters),
            }
            for part in parts
        ],
    }
