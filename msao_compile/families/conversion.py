"""Weights that a checkpoint holds in another form than the model: experts one by one, joined projections, other orders.

Transformers' own conversions are run, one group of tensors at a time; what comes out is kept in one file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msao_compile.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from msao_compile.families.checkpoint import Source

CONVERTED = "converted.bin"
"""The file of converted tensors, float32 one after another; it lies beside no checkpoint, but in a stage's folder."""


@dataclass
class Group:
    """Tensors of a checkpoint that become one or several parameters together: a conversion, and what it reads."""

    converter: Any
    key: str
    tensors: list[tuple[str, Source]] = field(default_factory=list)


def write_converted(
    folder: Path, model: PreTrainedModel, groups: Mapping[str, Group], found: Mapping[str, Source], output: Path
) -> None:
    """Run every conversion and write what comes out where `found` says that it lies.

    Raises:
        CheckpointError: a conversion does not give the tensors that the model has.
    """
    wanted = {name: source for name, source in found.items() if source.file == CONVERTED}
    with output.open("wb") as file:
        for name, values in _converted(folder, model, groups):
            if name not in wanted:
                continue
            source = wanted.pop(name)
            if values.shape != source.shape:
                raise CheckpointError(
                    f"{folder}: tensor {name!r} is {values.shape} after its conversion where config.json says "
                    f"{source.shape}; use the config.json that belongs to these weights"
                )
            file.seek(source.offset)
            file.write(values.data)
    if wanted:
        raise CheckpointError(
            f"{folder}: tensor {next(iter(wanted))!r} is missing ({len(wanted)} in all); download the checkpoint again "
            "or use the matching config.json"
        )


def _converted(folder: Path, model: PreTrainedModel, groups: Mapping[str, Group]) -> Iterator[tuple[str, np.ndarray]]:
    import torch

    from msao_compile.families.checkpoint import read_tensor, refuse_not_finite

    for target, group in groups.items():
        converter = group.converter.copy(
            group.converter._original_source_patterns,
            group.converter._original_target_patterns,
            operations=group.converter.operations,
        )
        # Numbered tensors in the order of their numbers, as a list of modules has them.
        for pattern, source in sorted(group.tensors, key=lambda item: _numbers(item[1].key)):
            values = read_tensor(folder, vars(source))
            refuse_not_finite(folder, source, values)
            converter.add_tensor(target, source.key, pattern, torch.from_numpy(values.copy()))
        try:
            made = converter.convert(target, model=model, config=model.config)
        except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
            said = " ".join(str(error).split())
            raise CheckpointError(f"{folder}: tensors of {target!r} cannot be converted ({said[:200]})") from error
        for name, value in made.items():
            tensor = value[0] if isinstance(value, list) else value
            yield name, np.ascontiguousarray(tensor.to(torch.float32).numpy())


def _numbers(key: str) -> list[Any]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in key.split(".")]
