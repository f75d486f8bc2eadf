"""Take a checkpoint apart: trace its model, cut it into modules, tell whose each weight is and what identifies it."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch

from msao_compile.errors import ShapeSpecialised, StageError
from msao_compile.families.checkpoint import Source, locate, read_config, read_pieces, refuse_not_finite
from msao_compile.families.classes import request_classes
from msao_compile.families.conversion import write_converted
from msao_compile.families.examples import modalities
from msao_compile.families.kv_cost import trained_positions
from msao_compile.families.left_out import is_named, refuse_surplus, refuse_unread, surplus, unread
from msao_compile.families.light import light
from msao_compile.families.registry import open_checked
from msao_compile.families.runnable import folder_of, read_whole_numbers, runnable
from msao_compile.families.side_files import start_token
from msao_compile.families.subject import Description, describe, rope_kind, turned, with_rows
from msao_compile.graph.ends import digest, name_ends, spec, weights, write_archive
from msao_compile.graph.export import export
from msao_compile.graph.rewrite import growing
from msao_compile.graph.whole import UNTRACEABLE, Seen, Subject, look
from msao_compile.manifest.digest import canonical_json, sha256_bytes
from msao_compile.manifest.schema import ENCODERS, Dialect, Encoder, HostCall

logger = logging.getLogger(__name__)
Traced = dict[Dialect, dict[str, dict[str, Any]]]


def run(arguments: dict[str, Any], on_progress: Any) -> dict[str, Any]:
    """Split the checkpoint in `arguments["checkpoint"]`; the graphs of each dialect go to a file of `outputs`.

    `arguments`: checkpoint, exclude (components that the recipe leaves out), trusted, outputs (archive by dialect),
    converted (a file for weights of which the checkpoint has another form).

    Gives how a request reaches the modules and, per component, its identity and tensors. A tensor that an earlier
    component already holds is borrowed: a deployment has it once.

    Raises:
        CheckpointError: a file is damaged or does not belong to the config. UnsupportedFamily: nothing of what the
            model takes could be tried. StageError: a module cannot be traced, or a part of the model is in none.
    """
    folder, exclude = Path(arguments["checkpoint"]), arguments["exclude"]
    model = open_checked(folder, bool(arguments.get("trusted")))
    folders = (folder, Path(arguments["converted"]).parent)
    located = locate(folder, model)
    extra = surplus(model, located)
    refuse_surplus(folder, extra, exclude)
    write_converted(folder, model, located.groups, located.sources, Path(arguments["converted"]))
    model = runnable(model)
    read_whole_numbers(folders, model, located.sources)
    on_progress({"doing": "run on examples"})
    with light(model):
        description, traced, states = _taken_apart(model, arguments, on_progress)
        classes = request_classes(model, [entry.modality for entry in description.encoders])
    used = {located.sources[name] for parts in traced.values() for part in parts.values() for name in part["weights"]}
    left = unread(model, located.sources, used, exclude)
    refuse_unread(type(model).__name__, left, exclude)
    on_progress({"doing": "read the weights"})
    first = next(iter(traced.values()))
    config = model.config
    return {
        "excluded": _excluded(model, exclude, [*extra, *left]),
        "family": read_config(folder)["model_type"],
        "architecture": type(model).__name__,
        "hidden_size": _width(first),
        "vocab_size": _vocabulary(first),
        "position_limit": min((part.original_max_seq_len for part in growing(model)), default=None),
        "trained_positions": trained_positions(config) if description.tokens is not None else None,
        "kept": [name for name in exclude if any(name == path for path, _ in model.named_modules())],
        "components": _components(folders, model, located.sources, traced),
        "states": states,
        "encoders": [
            _as_read(encoder, first, description.examples).model_dump(mode="json") for encoder in description.encoders
        ],
        "tokens": description.tokens,
        "position": description.position,
        "start_token": start_token(folder, config) if description.tokens == "decoder_input_ids" else None,
        "facts": _facts(description),
        "classes": classes,
    }


def _taken_apart(
    model: Any, arguments: Mapping[str, Any], on_progress: Any
) -> tuple[Description, Traced, dict[Dialect, list[dict[str, Any]]]]:
    """Traced for pictures of any size where that can be, from either example, else of the one size of its examples."""
    exclude, outputs = tuple(arguments["exclude"]), arguments["outputs"]
    description = describe(model, exclude)
    try:
        return description, *_traced(description, outputs, on_progress)
    except ShapeSpecialised as error:
        logger.info("from the other example: %s", error)
        fault: StageError = error
        with contextlib.suppress(StageError):
            other = turned(description)
            return other, *_traced(other, outputs, on_progress)
    except StageError as error:
        fault = error
    fixed = describe(model, exclude, fixed=True)
    if [value.shape for value in fixed.examples[1].values()] == [
        value.shape for value in description.examples[1].values()
    ]:
        raise fault
    logger.info("pictures of one size only: %s", fault)
    return fixed, *_traced(fixed, outputs, on_progress)


def _traced(
    description: Description, outputs: Mapping[Dialect, str], on_progress: Any
) -> tuple[Traced, dict[Dialect, list[dict[str, Any]]]]:
    """Write an archive of graphs for each dialect; what each module of it is, and what state its decoder keeps."""
    fault: StageError | None = None
    for subject, seen in _looked(description):
        try:
            return _exported(subject, seen, description, outputs, on_progress)
        except StageError as error:
            fault = error
    assert fault is not None  # what cannot even be looked at raises there
    raise fault


def _exported(
    subject: Subject, seen: Seen, description: Description, outputs: Mapping[Dialect, str], on_progress: Any
) -> tuple[Traced, dict[Dialect, list[dict[str, Any]]]]:
    traced: Traced = {}
    for dialect, output in outputs.items():
        on_progress({"doing": f"trace ({dialect})"})
        parts = export(subject, seen, dialect, description.needs)
        name_ends(parts, description.outputs)
        traced[dialect] = {component: _described(part) for component, part in parts.items()}
        write_archive(parts, Path(output))
    return traced, {dialect: [_state(seen, name, dialect) for name in seen.states] for dialect in traced}


def _as_read(
    encoder: Encoder, components: Mapping[str, Mapping[str, Any]], examples: tuple[Mapping[str, torch.Tensor], ...]
) -> Encoder:
    """An encoder as the graphs have it.

    It has no host calls whose results no graph and no later call reads, and no placeholder where its features are not
    put in the place of tokens. Where all that is read lies packed, several items in one, and nothing that has a row
    for each of them, they are encoded at once: only together they are what their indices point into.
    """
    read = {entry["name"] for component in components.values() for entry in component["inputs"]}
    kept: list[HostCall] = []
    for call in reversed(encoder.host):
        if read & set(call.outputs):
            kept.append(call)
            read |= {source.partition(":")[0] for source in call.inputs.values()}
    rows = {name for name in encoder.inputs if all(len(example[name]) == 1 for example in examples)}
    changed = {
        "host": tuple(reversed(kept)),
        "placeholder": encoder.placeholder if f"{encoder.modality}_features" in read else None,
        "each": encoder.each and bool(rows & read),
    }
    return encoder.model_copy(update=changed)


def _described(part: Any) -> dict[str, Any]:
    return {
        "graph": digest(part),
        "weights": weights(part),
        "inputs": [spec(value) for value in part.graph.inputs],
        "outputs": [spec(value) for value in part.graph.outputs],
    }


def _width(components: Mapping[str, Mapping[str, Any]]) -> int:
    """The length of an embedding, 0 for a model that decodes nothing."""
    given = [entry for entry in components.get("decoder", {}).get("inputs", []) if entry["name"] == "inputs_embeds"]
    return int(given[0]["shape"][-1]) if given else 0


def _vocabulary(components: Mapping[str, Mapping[str, Any]]) -> int:
    """How many logits there are, which may be more than the config's vocabulary; 0 for a model that decodes nothing."""
    given = [entry for entry in components.get("decoder", {}).get("outputs", []) if entry["name"] == "logits"]
    return int(given[0]["shape"][-1]) if given else 0


def _facts(description: Description) -> dict[str, Any]:
    """What positions of several axes need to know of the config."""
    from msao_compile.runtime.host.rope import VARIANTS

    if description.position in (None, "rope"):
        return {}
    found = {}
    for name, path in VARIANTS[rope_kind(description.model)][1].items():
        value: Any = description.model.config
        for part in path.split("."):
            value = value[part] if isinstance(value, dict) else getattr(value, part, None)
        found[name] = value
    return found


def _excluded(model: Any, exclude: Sequence[str], left: Sequence[str]) -> list[str]:
    """Those of the recipe's names that leave something of this model out."""
    encoders = [ENCODERS[modality] for modality in modalities(model)]
    return [name for name in exclude if name in encoders or any(is_named(part, [name]) for part in left)]


def _components(
    folders: tuple[Path, Path],
    model: Any,
    sources: Mapping[str, Source],
    traced: Mapping[Dialect, Mapping[str, Mapping[str, Any]]],
) -> list[dict[str, Any]]:
    order = {name: (value.ndim != 2, index) for index, (name, value) in enumerate(model.state_dict().items())}
    names = list(dict.fromkeys(component for parts in traced.values() for component in parts))
    owners: dict[Source, tuple[str, str]] = {}
    trained = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    found = []
    for component in names:
        graphs = {dialect: parts[component] for dialect, parts in traced.items() if component in parts}
        used = {name for graph in graphs.values() for name in graph["weights"]}
        # Matrices first: without the biases between them, neighbouring products can be joined over one run of bytes.
        tensors = _tensors(folders, component, sorted(used, key=order.__getitem__), sources, owners, trained)
        digests = {entry["name"]: entry["digest"] for entry in tensors}
        identity = {
            "component": component,
            "graphs": {dialect: graph["graph"] for dialect, graph in graphs.items()},
            "weights": {dialect: [digests[name] for name in graph["weights"]] for dialect, graph in graphs.items()},
        }
        first = next(iter(graphs.values()))
        found.append(
            {
                "component": component,
                "id": sha256_bytes(canonical_json(identity)),
                "params": sum(int(np.prod(entry["shape"], dtype=np.int64)) for entry in tensors),
                "weight_bytes": sum(entry["size_bytes"] for entry in tensors if "borrowed" not in entry),
                "kv": component == "decoder",
                "inputs": first["inputs"],
                "outputs": first["outputs"],
                "tensors": tensors,
            }
        )
    return found


def _tensors(
    folders: tuple[Path, Path],
    component: str,
    names: list[str],
    sources: Mapping[str, Source],
    owners: dict[Source, tuple[str, str]],
    trained: Set[str],
) -> list[dict[str, Any]]:
    """The tensors of one component."""
    found: list[dict[str, Any]] = []
    for name in names:
        source = sources[name]
        folder = folder_of(folders, source)
        digest, kind = hashlib.sha256(), np.dtype(np.float32)
        for values in read_pieces(folder, vars(source)):
            if name in trained:  # a buffer may well say that a range has no end
                refuse_not_finite(folder, source, values)
            digest.update(values.data)
            kind = values.dtype
        entry: dict[str, Any] = {
            "name": name,
            "shape": list(source.shape),
            "dtype": kind.name,
            "size_bytes": math.prod(source.shape) * kind.itemsize,
            "digest": digest.hexdigest(),
            "source": vars(source),
        }
        if source in owners:
            entry["borrowed"] = list(owners[source])
        else:
            owners[source] = (component, name)
        found.append(entry)
    return found


def _looked(description: Description) -> Iterator[tuple[Subject, Seen]]:
    """The model run at two sizes: with several rows where it can, else with one.

    Rows share media, of which any number has its place in them; where media have none, each row has its own.
    """
    faults: list[Exception] = []
    apart = description.tokens is not None and any(encoder.placeholder is None for encoder in description.encoders)
    shared, own = with_rows(description), with_rows(description, media=True)
    for candidate in (own, shared, description) if apart else (shared, own, description):
        subject = Subject(
            model=candidate.model,
            examples=candidate.examples,
            names=candidate.names,
            tokens=candidate.tokens,
            outputs=candidate.outputs,
            bound=candidate.bound,
        )
        try:
            seen = look(subject)
        except UNTRACEABLE as error:
            faults.append(error)
            continue
        yield subject, seen
        if candidate is not own:
            return
    said = " ".join(str(faults[-1]).split())
    raise StageError(f"{type(description.model).__name__} does not run on examples of its inputs: {said}") from faults[
        -1
    ]


def _state(seen: Seen, name: str, dialect: Dialect) -> dict[str, Any]:
    """One state tensor as the manifest tells of it."""
    state = seen.states[name]
    shape: list[int | str] = ["batch_size", *state.shape[1:]]
    after = list(shape)
    if state.axis is not None:
        shape[state.axis] = after[state.axis] = "past_sequence_length"
    in_place = dialect == "fused" and state.layer in seen.fusible
    return {
        "name": name,
        "output": f"present{name.removeprefix('past_key_values')}",
        "dtype": str(state.dtype).removeprefix("torch."),
        "shape": shape,
        "update": "in_place" if in_place else state.update,
    }
