"""A placement instance of a deployment: modules, bytes and times from its manifest, devices and requests from a file.

A model's encoders are placed one by one. All else of it (embeddings, decoder, head) is placed as one, as each token
goes through all of it. What several models share is one module under the name of the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, ValidationError

from msao_compile.errors import InputError
from msao_compile.manifest.frozen import Frozen
from msao_compile.manifest.offload import Primitives
from msao_compile.manifest.placement import PlacedCopy, Placement
from msao_compile.manifest.schema import Deployment, Model
from msao_compile.place.certify import Placed
from msao_compile.place.instance import Amount, Device, Instance, Link, Rate, Request, checked, sentence

MS = 1e-3


class PacedDevice(Device):
    """A device, and how many times slower it is than the machine that measured the deployment."""

    slower: Rate = 1.0


class Work(Frozen):
    """What a request is to a decoder: tokens of its prompt, and new ones."""

    prompt_tokens: Annotated[int, Field(ge=1)]
    new_tokens: Annotated[int, Field(ge=1)]


class Override(Frozen):
    """What is known of a module better than from the manifest, each as in an instance file."""

    memory_bytes: Amount | dict[str, Amount] | None = None
    output_bytes: Amount | None = None
    seconds: dict[str, Any] | None = None
    allowed: tuple[str, ...] | None = None


class Devices(Frozen):
    """The file beside a deployment: where its modules may go, and who asks."""

    devices: Annotated[tuple[PacedDevice, ...], Field(min_length=1)]
    links: tuple[Link, ...]
    requests: Annotated[tuple[Request, ...], Field(min_length=1)]
    work: Work
    modules: dict[str, Override] = Field(default_factory=dict)


@dataclass(frozen=True)
class Unit:
    """What is placed as one: its names (one for each model that has it), and the ids of its modules."""

    names: tuple[str, ...]
    ids: tuple[str, ...]
    model: str
    components: tuple[str, ...]
    encodes: str | None
    """The modality, where it is an encoder."""


def units_of(deployment: Deployment) -> list[Unit]:
    """What a deployment places, in the order of its models."""
    found: dict[tuple[str, ...], Unit] = {}
    for model in deployment.models:
        for components, modality in _groups(model):
            ids = tuple(model.components[component] for component in components)
            name = f"{model.name}.{'decoder' if 'decoder' in components else components[0]}"
            known = found.get(ids)
            names = (name,) if known is None else (*known.names, name)
            first = Unit(names, ids, model.name, components, modality) if known is None else known
            found[ids] = Unit(names, ids, first.model, first.components, first.encodes)
    return list(found.values())


def _groups(model: Model) -> list[tuple[tuple[str, ...], str | None]]:
    encoders = {encoder.component: encoder.modality for encoder in model.encoders}
    rest = tuple(component for component in model.components if component not in encoders)
    alone: list[tuple[tuple[str, ...], str | None]] = [((name,), modality) for name, modality in encoders.items()]
    return [*alone, (rest, None)] if rest else alone


def devices_of(content: Any, where: str) -> Devices:
    """What a devices file says.

    Raises:
        InputError: something is missing, unknown, negative or not finite; the message names the field.
    """
    try:
        return Devices.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{where}: {sentence(error)}") from error


def instance_of(deployment: Deployment, given: Devices, where: str) -> Instance:
    """The instance of a deployment on these devices.

    Raises:
        InputError: a module that is named is none of the deployment, or nothing says what it takes or gives.
    """
    units = units_of(deployment)
    aliases = {name: unit.names[0] for unit in units for name in unit.names}
    for name in given.modules:
        if name not in aliases:
            raise InputError(
                f"{where}: modules names {name!r}, which is none of {deployment.name}: known are {', '.join(aliases)}"
            )
    known = {aliases[name]: entry for name, entry in given.modules.items()}
    whole = {
        "devices": [{"name": device.name, "memory_bytes": device.memory_bytes} for device in given.devices],
        "links": [link.model_dump(by_alias=True) for link in given.links],
        "modules": [_module(deployment, unit, known.get(unit.names[0], Override()), given, where) for unit in units],
        "requests": [_renamed(request, aliases) for request in given.requests],
    }
    return checked(whole, where)


def _renamed(request: Request, aliases: Mapping[str, str]) -> dict[str, Any]:
    content = request.model_dump()
    content["head"] = aliases.get(request.head, request.head)
    for use in content["encoders"]:
        use["module"] = aliases.get(use["module"], use["module"])
    return {**content, "encoders": list(content["encoders"])}


def _module(deployment: Deployment, unit: Unit, known: Override, given: Devices, where: str) -> dict[str, Any]:
    name = unit.names[0]
    memory: Any = known.memory_bytes
    if memory is None:
        memory = float(sum(deployment.module(identity).weight_bytes for identity in set(unit.ids)))
    seconds: Any = known.seconds
    if seconds is None:
        here_s = _measured_s(deployment, unit, given.work)
        if here_s is None:
            raise InputError(f"{where}: nothing was measured of {name}: give modules.{name}.seconds by device")
        seconds = {device.name: here_s * device.slower for device in given.devices}
    output = known.output_bytes
    if output is None:
        output = _output_bytes(deployment, unit)
        if output is None:
            raise InputError(f"{where}: nothing says what leaves {name}: give modules.{name}.output_bytes")
    entry = {"name": name, "memory_bytes": memory, "output_bytes": output, "seconds": seconds}
    return entry if known.allowed is None else {**entry, "allowed": list(known.allowed)}


def _measured_s(deployment: Deployment, unit: Unit, work: Work) -> float | None:
    """Seconds on the machine that measured: of a picture's encoder with its preparation, or of an answer's tokens."""
    times = next((entry for entry in deployment.primitives if entry.model == unit.model), None)
    if times is None:
        return None
    if unit.encodes == "image":
        return (times.prepare.at(1) + times.encode.at(1)) * MS
    return _decoding_s(times, work) if "decoder" in unit.components else None


def _decoding_s(times: Primitives, work: Work) -> float:
    return (times.prefill.at(work.prompt_tokens) + times.decode.at(1) * (work.new_tokens - 1)) * MS


def _output_bytes(deployment: Deployment, unit: Unit) -> float | None:
    """The largest that crosses behind an encoder; what leaves a decoder is the reply, which requests say."""
    if unit.encodes is None:
        return 0.0
    sizes = [
        size
        for point in deployment.partition_points
        if (point.model, point.after) == (unit.model, unit.components[0])
        for size in point.bytes_per_request.values()
    ]
    return float(max(sizes)) if sizes else None


def placement_of(deployment: Deployment, placed: Placed) -> Placement:
    """What the manifest says of a placement.

    Raises:
        InputError: there is none.
    """
    if placed.copies is None or placed.certificate is None:
        raise InputError("there is no placement to write")
    units = {unit.names[0]: unit for unit in units_of(deployment)}
    problem = placed.problem
    copies = tuple(
        PlacedCopy(
            module=name, ids=units[name].ids, device=problem.device_names[option.device], dtype=option.dtype or None
        )
        for name, options, held in zip(problem.module_names, problem.options, placed.copies, strict=True)
        for option in (options[index] for index in held)
    )
    return Placement(copies=copies, certificate=placed.certificate)
