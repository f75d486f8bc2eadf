"""`python -m tests.bench.instances`: draw the published placement instances again, and say what is expected of each.

Workloads are public models by their parameters and GFLOPs, device sets are made up; a seed draws what no table says.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msao_compile.place.certify import Terms, place
from msao_compile.place.instance import checked
from tests.bench.children import REPOSITORY

FOLDER = REPOSITORY / "recipes" / "instances"
INDEX, LARGE = "index.json", "large-60x20.json"
SEED = 20260801
BYTES = {"fp16": 2.0, "int4": 0.5625}
"""Of a parameter; int4 with a scale of two bytes for each block of 32."""
PICTURE, SOUND, PROMPT, REPLY = 120_000, 480_000, 300, 400
"""Bytes of a JPEG, of 15 s of 16 kHz PCM, of a text, of an answer."""


@dataclass(frozen=True)
class Part:
    """A module: millions of parameters, GFLOP of one request, bytes that leave it."""

    params: float
    gflop: float
    output_bytes: int


CLIP = {
    "rn50": (38.32, 63.69, 12.22, 5.96), "rn101": (56.26, 63.43, 19.54, 5.96), "rn50x4": (87.14, 91.16, 42.56, 9.27),
    "rn50x16": (167.33, 123.65, 149.39, 13.30), "rn50x64": (420.38, 202.88, 529.11, 23.55),
    "vit-b32": (87.85, 63.43, 8.82, 5.96), "vit-b16": (86.19, 63.43, 35.13, 5.96),
    "vit-l14": (303.97, 123.65, 162.03, 13.30), "vit-l14-336": (304.29, 123.65, 381.92, 13.30),
}  # fmt: skip
"""The CLIP family as published: image and text parameters (M), GFLOP of one image and of one text of 77 tokens."""

PARTS = {
    "similarity": Part(0.01, 0.0001, 64),
    **{f"clip-{name}.image": Part(image, image_gflop, 2048) for name, (image, _, image_gflop, _) in CLIP.items()},
    **{f"clip-{name}.text": Part(text, text_gflop, 2048) for name, (_, text, _, text_gflop) in CLIP.items()},
    "vit-gpt2.image": Part(86.4, 35.2, 302_592),
    "vit-gpt2.decoder": Part(152.8, 2 * 0.1528 * 24, 128),
    "blip2.image": Part(1091.0, 2 * 1.091 * 257, 131_072),
    "blip2.decoder": Part(2651.6, 2 * 2.6516 * 72, 128),
    "llava.decoder": Part(6738.4, 2 * 6.7384 * 672, 256),
    "whisper.audio": Part(88.2, 2 * 0.0882 * 1500, 2_304_000),
    "whisper.decoder": Part(153.6, 2 * 0.1536 * 48, 128),
    "clap.audio": Part(28.5, 10.0, 2048),
    "clap.text": Part(125.2, 2 * 0.1252 * 77, 2048),
}  # fmt: skip
"""Beside CLIP: parameters of the public checkpoints, GFLOP reckoned as 2 x parameters x tokens."""


@dataclass(frozen=True)
class Model:
    """A use of modules: encoders with the bytes that go to them, and the head."""

    task: str
    encoders: tuple[tuple[str, int], ...]
    head: str


MODELS = {
    **{
        f"clip-{name}": Model(
            "zero-shot" if name.startswith("rn") else "retrieval",
            ((f"clip-{name}.image", PICTURE), (f"clip-{name}.text", PROMPT)), "similarity",
        )
        for name in CLIP
    },
    "vit-gpt2": Model("captioning", (("vit-gpt2.image", PICTURE),), "vit-gpt2.decoder"),
    "blip2-opt-2.7b": Model("captioning", (("blip2.image", PICTURE),), "blip2.decoder"),
    "llava-1.5-7b": Model("vqa", (("clip-vit-l14-336.image", PICTURE),), "llava.decoder"),
    "whisper-small": Model("speech", (("whisper.audio", SOUND),), "whisper.decoder"),
    "clap": Model("zero-shot", (("clap.audio", SOUND), ("clap.text", PROMPT)), "similarity"),
}  # fmt: skip
TOGETHER = {
    "two-retrievals": ("clip-vit-b16", "clip-vit-l14"),
    "zero-shots": ("clip-rn50", "clip-rn50x16", "clap"),
    "shared-tower": ("clip-vit-l14-336", "llava-1.5-7b"),
    "words-of-pictures": ("vit-gpt2", "blip2-opt-2.7b", "clip-vit-b32"),
    "five-tasks": ("clip-vit-l14-336", "llava-1.5-7b", "vit-gpt2", "whisper-small", "clap"),
}
WORKLOADS = {**{name: (name,) for name in MODELS}, **TOGETHER}

SMALL = 30e6
"""Bytes that a device of a tight instance has beside what the hidden placement puts there."""

NEAR_MS, FAR_MS, NEAR_MBPS, FAR_MBPS = (1, 8), (20, 60), (100, 900), (40, 200)

Machine = tuple[str, float, float]
"""Name, GB of memory for modules, GFLOP/s that it reaches."""
DEVICES: dict[str, tuple[str, tuple[Machine, ...]]] = {
    "jetson-cloud": ("star", (("cloud", 40, 60000), ("jetson-1", 6, 2500), ("jetson-2", 6, 2500))),
    "desk": ("mesh", (("laptop", 8, 900), ("desktop", 16, 8000), ("server", 32, 20000))),
    "phones": ("mesh", (("phone-1", 2, 300), ("phone-2", 3, 500), ("tablet", 4, 800), ("laptop", 8, 900))),
    "campus": ("mesh", (("sensor", 1, 60), ("jetson", 6, 2500), ("laptop", 8, 900), ("server", 24, 12000),
                        ("cloud", 80, 60000))),
    "edge-only": ("star", (("hub", 8, 1500), ("orin", 14, 5000), ("nx", 6, 2000), ("nano", 3, 600), ("pi", 2, 40))),
}  # fmt: skip
"""Topology and machines; a star's hub is the first."""


def module_of(name: str, machines: tuple[Machine, ...], chance: random.Random, dtypes: bool = False) -> dict[str, Any]:
    """A module on these machines; a kernel reaches a little more or less of a machine's rate."""
    part = PARTS[name]
    seconds = {machine: round(0.002 + part.gflop / rate * chance.uniform(0.9, 1.3), 6) for machine, _, rate in machines}
    entry: dict[str, Any] = {"name": name, "output_bytes": part.output_bytes}
    if dtypes:
        slower = {machine: round(value * 1.15, 6) for machine, value in seconds.items()}
        entry["memory_bytes"] = {dtype: round(part.params * 1e6 * size) for dtype, size in BYTES.items()}
        return {**entry, "seconds": {"fp16": seconds, "int4": slower}}
    return {**entry, "memory_bytes": round(part.params * 1e6 * BYTES["fp16"]), "seconds": seconds}


def links_of(names: list[str], topology: str, chance: random.Random) -> list[dict[str, Any]]:
    """A star around the first, or every pair, with far links where the cloud is an end."""
    pairs = [(one, two) for index, one in enumerate(names) for two in names[index + 1 :]]
    if topology == "star":
        pairs = [(one, two) for one, two in pairs if one == names[0]]
    return [
        {
            "from": one, "to": two, "rtt_ms": round(chance.uniform(*(FAR_MS if "cloud" in (one, two) else NEAR_MS)), 2),
            "mbps": round(chance.uniform(*(FAR_MBPS if "cloud" in (one, two) else NEAR_MBPS)), 1),
        }
        for one, two in pairs
    ]  # fmt: skip


def requests_of(models: tuple[str, ...], names: list[str], chance: random.Random) -> list[dict[str, Any]]:
    """Each model asked from one or two devices, never from the cloud; weights add up to 1."""
    homes = [name for name in names if name not in ("cloud", "server")]
    found: list[dict[str, Any]] = []
    for name in models:
        model = MODELS[name]
        for source in chance.sample(homes, min(len(homes), chance.choice((1, 2)))):
            encoders = [{"module": module, "input_bytes": size} for module, size in model.encoders]
            request = {"task": f"{model.task} ({name})", "source": source, "weight": chance.randint(1, 9)}
            found.append({**request, "reply_bytes": REPLY, "head": model.head, "encoders": encoders})
    whole = sum(request["weight"] for request in found)
    return [{**request, "weight": request["weight"] / whole} for request in found]


@dataclass(frozen=True)
class Drawn:
    """How an instance differs from the plain one: another topology, memory that a hidden random placement hardly fits,
    and whether dtypes are chosen.
    """

    workload: str
    devices: str
    variant: str = ""
    topology: str | None = None
    tight: bool = False
    dtypes: bool = False

    @property
    def name(self) -> str:
        """Of the file."""
        return "--".join(part for part in (self.workload, self.devices, self.variant) if part)

    def content(self) -> dict[str, Any]:
        """The instance; its name seeds it."""
        chance = random.Random(f"{SEED} {self.name}")
        topology, machines = DEVICES[self.devices]
        models = WORKLOADS[self.workload]
        parts = dict.fromkeys(
            module for name in models for module in (*(one for one, _ in MODELS[name].encoders), MODELS[name].head)
        )
        names = [machine for machine, _, _ in machines]
        modules = [module_of(name, machines, chance, self.dtypes) for name in parts]
        sizes = {name: gigabytes * 1e9 for name, gigabytes, _ in machines}
        if self.tight:
            sizes = dict.fromkeys(names, float(SMALL))
            for module in modules:
                memory = module["memory_bytes"]
                taken = chance.choice(list(memory.values())) if isinstance(memory, dict) else memory
                sizes[chance.choice(names)] += taken * chance.uniform(1.0, 1.1)
            sizes = {name: round(size) for name, size in sizes.items()}
        return {
            "devices": [{"name": name, "memory_bytes": sizes[name]} for name in names],
            "links": links_of(names, self.topology or topology, chance), "modules": modules,
            "requests": requests_of(models, names, chance),
        }  # fmt: skip


def drawn() -> Iterator[Drawn]:
    """Every published instance but the large one."""
    for workload in WORKLOADS:
        for devices in DEVICES:
            yield Drawn(workload, devices)
    for workload in TOGETHER:
        for devices, (topology, _) in DEVICES.items():
            other = "star" if topology == "mesh" else "mesh"
            yield Drawn(workload, devices, other, topology=other)
            yield Drawn(workload, devices, "tight", tight=True)
            yield Drawn(workload, devices, "tight-dtypes", tight=True, dtypes=True)


def large(modules: int = 60, devices: int = 20) -> dict[str, Any]:
    """Made-up modules in requests of two or three encoders, on a mesh with some links missing."""
    chance = random.Random(f"{SEED} large")
    names = [f"device-{number:02d}" for number in range(devices)]
    rates = {name: chance.choice((300, 900, 2500, 8000, 20000)) for name in names}
    encoders = [f"encoder-{number:02d}" for number in range(modules * 2 // 3)]
    heads = [f"head-{number:02d}" for number in range(modules - len(encoders))]
    entries = []
    for name in [*encoders, *heads]:
        params = chance.uniform(20, 900) * (3 if name in heads else 1)
        gflop = chance.uniform(5, 400)
        entries.append({
            "name": name, "memory_bytes": round(params * 2e6), "output_bytes": chance.choice((2048, 130_000, 600_000)),
            "seconds": {device: round(0.002 + gflop / rate, 6) for device, rate in rates.items()},
        })  # fmt: skip
    needed = sum(entry["memory_bytes"] for entry in entries)
    share = {name: chance.uniform(0.5, 1.5) for name in names}
    pairs = [(one, two) for index, one in enumerate(names) for two in names[index + 1 :]]
    rest, requests = list(encoders), []
    chance.shuffle(rest)
    for head in heads:
        own = [rest.pop() for _ in range(2) if rest] + chance.sample(encoders, chance.choice((0, 1)))
        requests.append({
            "task": f"task-{head}", "source": chance.choice(names), "weight": 1 / len(heads), "reply_bytes": REPLY,
            "encoders": [{"module": name, "input_bytes": chance.choice((PROMPT, PICTURE, SOUND))}
                         for name in dict.fromkeys(own)], "head": head,
        })  # fmt: skip
    return {
        "devices": [
            {"name": name, "memory_bytes": round(1.5 * needed * share[name] / sum(share.values()))} for name in names
        ],
        "links": [
            {"from": one, "to": two, "rtt_ms": round(chance.uniform(1, 40), 2), "mbps": round(chance.uniform(50, 900))}
            for one, two in pairs if chance.random() < 0.9
        ],
        "modules": entries, "requests": requests,
    }  # fmt: skip


def main() -> int:
    """Write every instance, and `index.json` with what the exact program says of each."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.instances", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="written anew")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.json"):
        old.unlink()
    told = []
    for one in drawn():
        content = one.content()
        write(folder / f"{one.name}.json", content)
        told.append(expected(one, content))
    write(folder / LARGE, large())
    (folder / INDEX).write_text("[\n" + ",\n".join(map(json.dumps, told)) + "\n]\n", encoding="utf-8")
    sys.stderr.write(f"{len(told)} instances and {LARGE} in {folder}\n")
    return 0


def expected(one: Drawn, content: dict[str, Any]) -> dict[str, Any]:
    """A line of the index: what the file is, and what comes out of it."""
    found = place(checked(content, one.name), Terms())
    return {
        "file": f"{one.name}.json", "workload": one.workload, "devices": one.devices, "variant": one.variant,
        "modules": len(content["modules"]), "feasible": found.certificate is not None,
        "optimum_s": None if found.certificate is None else found.certificate.objective_s, "reason": found.reason,
    }  # fmt: skip


def write(path: Path, content: dict[str, Any]) -> None:
    """An instance as JSON, an entry a line."""
    parts = [
        f'"{name}": [\n' + ",\n".join(f" {json.dumps(entry)}" for entry in entries) + "\n]"
        for name, entries in content.items()
    ]
    path.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
