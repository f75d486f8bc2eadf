"""`python -m tests.bench.scaled`: the models of `tests.bench.sharing`, small and random, built and compared for real.

Every config of `recipes/s2m3` is made small by one table of rules, so that towers of equal dimensions stay equal, and
the weights of a declared tower are copied: here the premise of sharing is true. Each model is built by itself, with a
store of its own, then all of them into one deployment; what both give to the same requests is compared bit for bit,
and memory is what the manifests tell.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from msao_compile.families.checkpoint import read_sources, read_tensor, weight_files
from msao_compile.families.original import Original
from msao_compile.manifest.schema import Deployment
from msao_compile.recipe.read import read_recipe
from msao_compile.runtime.api import load
from msao_compile.runtime.loader import read_manifest
from tests.bench.children import REPOSITORY
from tests.bench.machine import commit, machine
from tests.bench.report import table
from tests.bench.shares import identities, read_facts, tensors
from tests.bench.sharing import FACTS, RECIPE, Use, uses_of

LINEAR, DUAL = "clip-vit-l14-336-linear", "clip-vit-l14-336"
EXTRAS = {
    "clip-vit-l14-336-linear-2": (LINEAR, ("vision_model",)),
    "clip-vit-l14-336-lit": (DUAL, ("vision_model", "visual_projection")),
}
"""None of the 14: a second classifier on a tower, and another text tower for a locked image tower (as in LiT, arXiv
2111.07991); whose config they have, and which parts of its weights."""
WIDE = 1500
"""Widths from here on become 64, those below 32."""
WIDTHS = ("hidden_size", "d_model", "n_embd", "embed_dim", "encoder_hidden_size", "word_embed_proj_dim",
          "projection_dim")  # fmt: skip
LAYERS = ("num_hidden_layers", "n_layer", "encoder_layers", "decoder_layers", "depth")
ATTENTION = ("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads", "n_head", "num_heads")
POSITIONS = ("max_position_embeddings", "n_positions", "max_target_positions")
FIXED = {
    "intermediate_size": 48, "ffn_dim": 48, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "mlp_ratio": 2,
    "depths": [1, 1], "patch_embeds_hidden_size": 16, "spec_size": 64, "window_size": 4, "num_mel_bins": 16,
    "vocab_size": 320, "max_source_positions": 50, "num_query_tokens": 4, "num_labels": 10, "mrope_section": [4, 2, 2],
    "image_token_index": 300, "image_token_id": 300, "video_token_index": 301, "video_token_id": 301,
    "audio_token_index": 302, "vision_start_token_id": 303, "vision_end_token_id": 304, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
SAID_CHARACTERS = 200
PINPOINTS = [[48, 96], [96, 48], [96, 96]]
SETTINGS = """
[targets.here]
device = "local-cpu"
precision = "fp32"
[shapes.decoder]
batch = [1, 1, 1]
sequence = [1, 64, 448]
kv_capacity = 448
[parity]
fp32 = { min_cosine = 0.9999, max_abs = 1e-3 }
steps = 3
[runtime]
threads = 1
"""


@dataclass(frozen=True)
class Built:
    """One model by itself and in the deployment of all."""

    model: str
    seconds: float
    modules: Mapping[str, int]
    """Bytes by component when built by itself; none where it was not built."""
    requests: int
    """How many were answered bit for bit alike by both."""
    fault: str | None
    """Why it was not built, or what differs."""

    @property
    def weight_bytes(self) -> int:
        """Of all modules."""
        return sum(self.modules.values())


def small(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config of the same kind with few and narrow layers; equal sizes stay equal, and 27 layers one more than 26."""
    return {name: _small(name, value, config) for name, value in config.items()}


def _small(name: str, value: Any, around: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return small(value)
    if name in FIXED:
        return FIXED[name]
    if name in WIDTHS:
        return 64 if value >= WIDE else 32
    if name in LAYERS:
        return 3 if value == 27 else 2
    if name in ATTENTION:
        return [2, 2] if isinstance(value, list) else 4
    if name == "num_key_value_heads":
        return 4 if value == around["num_attention_heads"] else 2
    if name in POSITIONS:
        return min(value, 512)
    if name == "image_size":
        return 48 if value > 224 else 32
    return 8 if name == "patch_size" and "spec_size" not in around else value


def write(folder: Path, premise: bool = True) -> dict[str, Path]:
    """Checkpoints of all models in a folder, by name; a tower that is declared shared has its origin's weights.

    Without `premise` only towers that are frozen in truth are.
    """
    recipe, facts = read_recipe(RECIPE), read_facts(FACTS)
    sources = {name: Path(choice.checkpoint) for name, choice in recipe.models.items()}
    models: dict[str, Any] = {}
    every = {**sources, **{name: sources[of] for name, (of, _) in EXTRAS.items()}}
    for seed, (name, source) in enumerate(every.items()):
        models[name] = _random(source, folder / name, seed)
    sizes = {name: tensors(folder / name) for name in sources}
    shares = [one for one in facts.share if premise or one.kind == "frozen"]
    same = identities(sizes, shares)
    with torch.no_grad():
        for (model, name), (origin, there) in same.items():
            models[model].get_parameter(name).copy_(models[origin].get_parameter(there))
        for extra, (origin, parts) in EXTRAS.items():
            for part in parts:
                models[extra].get_submodule(part).load_state_dict(models[origin].get_submodule(part).state_dict())
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return {name: folder / name for name in models}


def _random(source: Path, folder: Path, seed: int) -> Any:
    config = small(json.loads((source / "config.json").read_text(encoding="utf-8")))
    if config["model_type"] == "llava_onevision":
        config["image_grid_pinpoints"] = PINPOINTS
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings = transformers.AutoConfig.from_pretrained(folder)
        model = getattr(transformers, config["architectures"][0])(settings).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.05)
    if model.can_generate():
        model.generation_config.eos_token_id = None
    return model


def recipe_of(name: str, checkpoints: Mapping[str, Path], uses: Sequence[Use]) -> str:
    """A recipe for this machine; a task is TASK.MODEL, as in the recipe of the 14."""
    lines = ["recipe = 1", f'name = "{name}"']
    for model, folder in checkpoints.items():
        lines += [f'[models."{model}"]', f'checkpoint = "{folder}"', 'role = "target"']
    for use in uses:
        if use.model in checkpoints:
            lines += [f'[tasks."{use.task}.{use.model}"]', f'models = ["{use.model}"]']
    return "\n".join(lines) + SETTINGS


def build(recipe: str, folder: Path, name: str) -> tuple[Path, float, str | None]:
    """Build into a folder with a store of its own: the deployment, seconds, and the last line where it failed."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.toml"
    file.write_text(recipe, encoding="utf-8")
    command = [sys.executable, "-m", "msao_compile", "build", str(file), "--quiet", "--jobs", "1"]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, "--out", str(folder / "out"), "--store", str(folder / "store")],
        capture_output=True, text=True, check=False, cwd=REPOSITORY,
    )  # fmt: skip
    said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return folder / "out" / name, time.perf_counter() - started, None if done.returncode == 0 else said


def differing(model: str, checkpoint: Path, alone: Path, together: Path) -> tuple[int, str | None]:
    """How many requests both deployments answer, and the first output that differs in any bit."""
    with torch.inference_mode():
        asked = Original(checkpoint, (), 3, 6).asked
    ours, theirs = load(alone), load(together)
    for number, one in enumerate(asked):
        first, second = (runtime.forward(one.inputs, model=model) for runtime in (ours, theirs))
        for name in sorted({*first, *second}):
            if name not in first or name not in second or not _same_bits(first[name], second[name]):
                return number, f"request {number}: {name} differs"
    return len(asked), None


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


def shared_modules(deployment: Deployment) -> list[tuple[str, tuple[str, ...], int]]:
    """Component, models and bytes of each module that several models have."""
    users: dict[str, list[str]] = {}
    for model in deployment.models:
        for held in model.components.values():
            users.setdefault(held, []).append(model.name)
    modules = {module.id: module for module in deployment.modules}
    return [
        (modules[held].component, tuple(names), modules[held].weight_bytes)
        for held, names in users.items()
        if len(names) > 1
    ]


def distinct_bytes(checkpoints: Sequence[Path]) -> tuple[int, int]:
    """Bytes of all tensors in the checkpoints' files, and of those that differ in shape or content."""
    total, held = 0, {}
    for folder in checkpoints:
        for file in weight_files(folder):
            for source in read_sources(file).values():
                values = read_tensor(folder, vars(source))
                held[source.shape, hashlib.sha256(values.tobytes()).hexdigest()] = values.nbytes
                total += values.nbytes
    return total, sum(held.values())


def main() -> int:
    """Write, build, compare, print; 1 where a model that was built differs in a bit."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scaled", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables")
    parser.add_argument("--folder", type=Path, default=Path("artifacts/bench/scaled"), help="emptied before")
    parser.add_argument("--model", action="append", help="these models only")
    chosen = parser.parse_args()
    made_at, where = commit(), machine()
    shutil.rmtree(chosen.folder, ignore_errors=True)
    folder = chosen.folder.absolute()
    checkpoints = write(folder / "checkpoints")
    if chosen.model:
        checkpoints = {name: checkpoints[name] for name in chosen.model}
    found = run(folder, checkpoints)
    command = shlex.join(["python", "-m", "tests.bench.scaled", *sys.argv[1:]])
    told = {"command": command, "commit": made_at, "machine": where, **found}
    text = markdown(told)
    print(text)
    plain = {**told, "models": [asdict(one) for one in found["models"]]}
    for file, content in ((chosen.json, json.dumps(plain, indent=1) + "\n"), (chosen.markdown, text)):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content, encoding="utf-8")
    return int(any(one.fault and one.modules for one in found["models"]))


def run(folder: Path, checkpoints: Mapping[str, Path]) -> dict[str, Any]:
    """Every model alone, then all that could be built in one deployment, and what both answer."""
    uses = [*uses_of(read_recipe(RECIPE)), *(Use("classification", extra) for extra in EXTRAS)]
    alone = {}
    for name, checkpoint in checkpoints.items():
        alone[name] = build(recipe_of(name, {name: checkpoint}, uses), folder / "alone" / name, name)
        print(f"{name}: {alone[name][1]:.0f} s{'' if alone[name][2] is None else ', ' + alone[name][2]}", flush=True)
    good = {name: checkpoints[name] for name, (_, _, fault) in alone.items() if fault is None}
    together, seconds, fault = build(recipe_of("together", good, uses), folder / "together", "together")
    if fault is not None:
        return {"models": [], "fault": fault, "seconds": seconds}
    models = list(_compared(alone, good, together))
    deployment = read_manifest(together)
    held = {one.model: one.weight_bytes for one in models if one.modules}
    total, distinct = distinct_bytes(list(good.values()))
    return {
        "models": models, "seconds": seconds, "fault": None,
        "unshared_bytes": sum(held[use.model] for use in uses if use.model in held),
        "models_once_bytes": sum(held.values()),
        "shared_bytes": sum(module.weight_bytes for module in deployment.modules),
        "modules": len(deployment.modules), "uses": sum(use.model in held for use in uses),
        "shared_modules": shared_modules(deployment),
        "checkpoint_bytes": total, "distinct_bytes": distinct,
    }  # fmt: skip


def _compared(
    alone: Mapping[str, tuple[Path, float, str | None]], good: Mapping[str, Path], together: Path
) -> Iterator[Built]:
    for name, (folder, seconds, fault) in alone.items():
        if fault is not None:
            yield Built(name, seconds, {}, 0, fault)
            continue
        requests, differs = differing(name, good[name], folder, together)
        sizes = {module.component: module.weight_bytes for module in read_manifest(folder).modules}
        yield Built(name, seconds, sizes, requests, differs)


def markdown(told: Mapping[str, Any]) -> str:
    """The page."""
    made = f"Made by `{told['command']}` at commit {told['commit']}."
    head = f"# Sharing, built for real on small random models\n\n{made}\n"
    if told["fault"] is not None:
        return f"{head}\n**The deployment of all was not built:** {told['fault']}\n"
    rows = [
        (one.model, ", ".join(f"{component} {_kb(size)}" for component, size in one.modules.items()),
         f"{one.seconds:.0f}", str(one.requests), (one.fault or "equal bit for bit")[:SAID_CHARACTERS])
        for one in told["models"]
    ]  # fmt: skip
    whole = told["unshared_bytes"]
    sizes = [
        (name, _kb(size), f"{(1 - size / whole) * 100:.1f} %")
        for name, size in (
            ("every use by itself", whole),
            ("every model once", told["models_once_bytes"]),
            ("one deployment, as built", told["shared_bytes"]),
        )
    ]
    common = [(component, ", ".join(names), _kb(size)) for component, names, size in told["shared_modules"]]
    total, distinct = _kb(told["checkpoint_bytes"]), _kb(told["distinct_bytes"])
    parts = [
        head,
        INTRODUCTION,
        table(("model", "modules, kB", "build alone, s", "requests compared", "alone and together"), rows),
        f"All in one deployment: {told['modules']} modules for {told['uses']} uses, {told['seconds']:.0f} s.\n",
        table(("memory by the manifests", "kB", "saved"), sizes),
        "Modules that several models have:\n",
        table(("component", "models", "kB"), common),
        f"The checkpoints hold {total} kB, of which {distinct} kB are distinct tensors: what else is equal lies inside "
        "modules that differ in something.\n",
    ]
    return "\n".join(parts)


def _kb(size_bytes: int) -> str:
    return f"{size_bytes / 1e3:,.1f}"


INTRODUCTION = """\
The models of [sharing.md](sharing.md), each made small by one table of rules (`tests/bench/scaled.py`) and filled with
random numbers; towers that are declared shared there have equal weights here, those of the premise too. Proportions
between towers and decoders are not those of the true models: percentages here say that sharing works, not how much it
saves. Two are not among the 14: a second classifier on the linear one's tower, and CLIP's image tower with another
text tower. A module is shared where its graph and every byte of its weights are equal. So LLaVA's tower is not CLIP's
(its module ends in LLaVA's projector, and has 23 of the 24 layers), two classifiers on one tower have none in common
(tower and head come out as one module), and Whisper's encoder leaves with its decoder's keys and values.
"""


if __name__ == "__main__":
    sys.exit(main())
