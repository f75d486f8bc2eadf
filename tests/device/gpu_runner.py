"""Tries the TensorRT runners on a real GPU: every step in a process of its own, one JSON line each, no fault ends it.

    python tests/device/gpu_runner.py make FOLDER          # where onnx and onnxruntime are: graphs and what they give
    python tests/device/gpu_runner.py run FOLDER [--out FILE] [--only a,b] [--backend trt_rtx]     # where the GPU is

On the machine with the GPU it needs NumPy and the library (tensorrt_rtx or tensorrt); torch where it is there. Engines
are built there, for the GPU there. No pytest collects this file.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import logging
import os
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from gpu_material import BOUNDS, CAPACITY, DECODERS, HIDDEN, SCRIPT, arrays, make, states

from msao_compile.errors import MsaoError
from msao_compile.runtime.backends import cuda, engine_file, trt, trt_build, trt_library

LIMIT_S = 100
RUNS = 50
Record = dict[str, Any]


class Bench:
    """The folder of graphs, and the backend that is tried."""

    def __init__(self, folder: Path, backend: str) -> None:
        self.folder, self.backend = folder, backend

    def build(self, name: str, sms: tuple[int, ...] = (), output: str = "") -> tuple[Path, Record]:
        """Build an engine here; it says that it is for this GPU, whatever `sms` it is built for."""
        order = json.loads((self.folder / "orders.json").read_text())[name]
        order |= {"backend": self.backend, "compute_capabilities": list(sms)}
        _, dialect, kind = name.split(".") if "." in name else ("", "portable", "float")
        facts = {
            "module": "0" * 64, "component": name, "precision": {"float": "fp32", "float16": "fp16"}[kind],
            "dialect": dialect, "graph_sha256": "1" * 64, "key": "2" * 64,
        }  # fmt: skip
        driver = cuda.probe()
        if isinstance(driver, cuda.Driver):
            facts |= driver.device.facts()
        path = self.folder / (output or f"{name}.engine")
        told = trt_build.build(self.folder / f"{name}.onnx", order, path, facts)
        return path, told

    def decoder(self, dialect: str, kind: str) -> tuple[trt.TrtDecoder, Record]:
        path, told = self.build(f"decoder.{dialect}.{kind}")
        started = time.perf_counter()
        file: Any = SimpleNamespace(path=path, dialect=dialect, settings=None, states=states(dialect))
        engine = trt.open_decoder(self.backend, file)
        return engine, {"built": told, "open_s": time.perf_counter() - started}

    def encoder(self, **more: Any) -> tuple[trt.TrtEngine, Record]:
        path, told = self.build("encoder", **more)
        started = time.perf_counter()
        file: Any = SimpleNamespace(path=path, dialect="portable", settings=None, states=())
        engine = trt.open_engine(self.backend, file)
        return engine, {"built": told, "open_s": time.perf_counter() - started}


def check_encoder(engine: trt.TrtEngine) -> Record:
    """Largest differences from NumPy for several batches."""
    weights = np.arange(1, 13, dtype=np.float32).reshape(4, 3)
    found = {}
    for batch in (1, 8, 3):
        x = np.random.default_rng(batch).standard_normal((batch, 4)).astype(np.float32)
        found[str(batch)] = float(np.abs(engine.run({"x": x})["y"] - np.maximum(x @ weights, 0)).max())
    return {"max_abs_by_batch": found, "right": max(found.values()) < 0.05}


def check_decoder(engine: trt.TrtDecoder, steps: Any, bound: float) -> Record:
    """Largest difference from ONNX Runtime at every step of `SCRIPT`."""
    cache, worst = engine.new_cache(CAPACITY, 2), []
    for index, (count, kept) in enumerate(SCRIPT):
        logits = engine.step(arrays(steps[f"embeds.{index}"], cache.length), cache)
        worst.append(float(np.abs(logits - steps[f"logits.{index}"]).max()))
        cache.rollback(kept)
        del count
    return {"max_abs_by_step": worst, "right": max(worst) < bound, "bound": bound}


def times(engine: trt.TrtDecoder) -> Record:
    """Milliseconds of decode steps with one token, each step rolled back, so that all do the same work."""
    cache = engine.new_cache(CAPACITY)
    rng = np.random.default_rng(0)
    embeds = rng.standard_normal((1, 1, HIDDEN)).astype(np.float32)
    engine.step(arrays(rng.standard_normal((1, 4, HIDDEN)).astype(np.float32), 0), cache)
    taken = []
    for _ in range(RUNS):
        started = time.perf_counter()
        engine.step(arrays(embeds, cache.length), cache)
        taken.append(1e3 * (time.perf_counter() - started))
        cache.rollback(4)
    graphs = sum(graph is not None for _, graph in engine._graphs.values())
    return {
        "first_ms": taken[0],
        "median_ms": statistics.median(taken[5:]),
        "worst_ms": max(taken[5:]),
        "graphs": graphs,
    }


def probe(bench: Bench) -> Record:
    driver = cuda.probe()
    if isinstance(driver, str):
        raise SystemExit(driver)
    return {"device": vars(driver.device), "memory": driver.memory(), "machine": engine_file.machine()}


def primitives(bench: Bench) -> Record:
    """Copies, zeros, rows, events and a captured graph, without the library."""
    driver = needed()
    stream, first, last = cuda.Stream(driver), cuda.Event(driver), cuda.Event(driver)
    wide, narrow = cuda.Slot(driver), cuda.Slot(driver)
    rows = np.arange(12, dtype=np.int64).reshape(3, 4)
    wide.room(rows.nbytes)
    first.record(stream)
    wide.put(rows, stream)
    last.record(stream)
    whole = wide.get(rows.shape, "int64", stream)
    stream.synchronize()
    copied = bool((whole == rows).all())
    narrow.device.take_rows(wide.device, 3, (32, 16), stream)
    part = narrow.get((3, 2), "int64", stream)
    stream.synchronize()
    cut = bool((part == rows[:, :2]).all())
    graph = stream.capture(lambda: wide.device.clear(stream))
    kept = wide.get(rows.shape, "int64", stream)
    stream.synchronize()
    unchanged = bool((kept == rows).all())
    graph.launch(stream)
    zeros = wide.get(rows.shape, "int64", stream)
    stream.synchronize()
    checks = {"copied": copied, "rows_cut": cut, "captured_not_run": unchanged, "launched": bool((zeros == 0).all())}
    return {**checks, "elapsed_ms": last.elapsed_ms(first), "right": all(checks.values())}


def needed() -> cuda.Driver:
    driver = cuda.probe()
    if isinstance(driver, str):
        raise SystemExit(driver)
    return driver


def load_library(bench: Bench) -> Record:
    lib = trt_library.library(bench.backend)
    messages = trt_library.Messages()
    trt_library.open_parser(lib, messages)
    known = [name for name in dir(getattr(lib, "ComputeCapability", None)) if name.startswith(("SM", "CURRENT"))]
    return {"version": lib.__version__, "compute_capabilities": known, "faults": list(messages.faults)}


def encoder(bench: Bench) -> Record:
    engine, told = bench.encoder()
    sizes = {"resident_bytes": engine.resident_bytes, "activation_bytes": engine.activation_bytes}
    return {**told, **sizes, **check_encoder(engine)}


def encoder_for(sm: int) -> Callable[[Bench], Record]:
    """An engine for another SM than is here, taken for one of this GPU: does the library run it?"""

    def step(bench: Bench) -> Record:
        engine, told = bench.encoder(sms=(sm,), output=f"encoder.sm{sm}.engine")
        return {**told, **check_encoder(engine)}

    return step


def encoder_current(bench: Bench) -> Record:
    """As `encoder`, with the library's own ComputeCapability.CURRENT instead of none."""

    def current(lib: Any, config: Any, order: Any, driver: cuda.Driver) -> list[int]:
        config.num_compute_capabilities = 1
        config.set_compute_capability(lib.ComputeCapability.CURRENT, 0)
        return [driver.device.sm]

    trt_build._set_gpus = current  # type: ignore[assignment]
    engine, told = bench.encoder(output="encoder.current.engine")
    return {**told, **check_encoder(engine)}


def decoder(dialect: str, kind: str) -> Callable[[Bench], Record]:
    def step(bench: Bench) -> Record:
        engine, told = bench.decoder(dialect, kind)
        steps = np.load(bench.folder / f"steps.{kind}.npz")
        sizes = {"resident_bytes": engine.resident_bytes, "activation_bytes": engine.activation_bytes}
        state_bytes = engine.new_cache(CAPACITY, 2).state_bytes
        checked = check_decoder(engine, steps, BOUNDS[kind])
        timed = {"captured": times(engine), "uncaptured_because": engine.uncaptured}
        engine.uncaptured = "asked for"
        engine._graphs.clear()
        timed["one by one"] = times(engine)
        return {**told, **sizes, "state_bytes": state_bytes, "aliases": engine._aliases, **checked, "times": timed}

    return step


def runtime_cache(bench: Bench) -> Record:
    """How long opening and the first run take without and with the kernels that were kept."""
    found: Record = {}
    path, _ = bench.build("decoder.scatter.float16")
    file: Any = SimpleNamespace(path=path, dialect="scatter", settings=None, states=states("scatter"))
    path.with_name(path.name + trt.RUNTIME_CACHE).unlink(missing_ok=True)
    for name in ("cold", "warm"):
        started = time.perf_counter()
        engine = trt.open_decoder(bench.backend, file)
        opened = time.perf_counter()
        engine.step(arrays(np.ones((1, 4, HIDDEN), np.float32), 0), engine.new_cache(CAPACITY))
        found[name] = {"open_s": opened - started, "first_step_s": time.perf_counter() - opened}
        kept = engine.save_runtime_cache()
        found[name]["cache_bytes"] = kept and kept.stat().st_size
    return found


def other_runtime_cache(bench: Bench) -> Record:
    """A file that is no runtime cache beside an engine: it is made anew."""
    path, _ = bench.build("encoder", output="encoder.cache.engine")
    path.with_name(path.name + trt.RUNTIME_CACHE).write_bytes(b"no cache")
    file: Any = SimpleNamespace(path=path, dialect="portable", settings=None, states=())
    return check_encoder(trt.open_engine(bench.backend, file))


def damaged_plan(bench: Bench) -> Record:
    """A right header before a plan with changed bytes: the library must refuse it and not crash."""
    path, _ = bench.build("encoder", output="encoder.damaged.engine")
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 4000):
        content[place] ^= 0x5A
    path.write_bytes(content)
    file: Any = SimpleNamespace(path=path, dialect="portable", settings=None, states=())
    return {"opened": check_encoder(trt.open_engine(bench.backend, file))}


def threads(bench: Bench) -> Record:
    """One engine from four threads: right everywhere."""
    engine, _ = bench.encoder()
    found: list[Record] = []
    workers = [threading.Thread(target=lambda: found.append(check_encoder(engine))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return {"threads": len(found), "right": len(found) == 4 and all(one["right"] for one in found)}


def memory(bench: Bench) -> Record:
    """Free memory after each of several times of opening, running and letting go."""
    driver, free = needed(), []
    for _ in range(5):
        engine, _ = bench.decoder("scatter", "float16")
        engine.step(arrays(np.ones((1, 4, HIDDEN), np.float32), 0), engine.new_cache(CAPACITY))
        del engine
        gc.collect()
        free.append(driver.memory()[0])
    return {"free_bytes": free, "right": free[1] - free[-1] < 1 << 22}


def too_large(bench: Bench) -> Record:
    """State that no GPU holds: an error with numbers, and the engine goes on."""
    engine, _ = bench.decoder("scatter", "float16")
    try:
        engine.new_cache(CAPACITY, 1 << 32)
    except MsaoError as error:
        said = str(error)
    steps = np.load(bench.folder / "steps.float16.npz")
    return {"said": said, **check_decoder(engine, steps, BOUNDS["float16"])}


def beside_torch(bench: Bench) -> Record:
    """The runner and torch in one process, in one context."""
    import torch

    a = torch.randn(64, 64, device="cuda")
    before = (a @ a).sum().item()
    engine, _ = bench.encoder()
    checked = check_encoder(engine)
    return {**checked, "torch": torch.__version__, "torch_same": abs((a @ a).sum().item() - before) < 1e-3}


STEPS: dict[str, Callable[[Bench], Record]] = {
    "probe": probe, "primitives": primitives, "library": load_library, "encoder": encoder,
    "encoder_current": encoder_current,
    **{f"encoder_sm{sm}": encoder_for(sm) for sm in (80, 89, 120)},
    **{f"decoder_{dialect}_{kind}": decoder(dialect, kind) for dialect, kind in DECODERS},
    "runtime_cache": runtime_cache, "other_runtime_cache": other_runtime_cache, "damaged_plan": damaged_plan,
    "threads": threads, "memory": memory, "too_large": too_large, "beside_torch": beside_torch,
}  # fmt: skip


def child(name: str, bench: Bench) -> Record:
    """Run one step here; what it raises is what it found."""
    try:
        return {"ok": True, **STEPS[name](bench)}
    except MsaoError as error:
        return {"ok": False, "error": type(error).__name__, "said": str(error)}
    except SystemExit as error:
        return {"ok": False, "error": "no GPU", "said": str(error)}
    except Exception as error:  # noqa: BLE001  # whatever a library raises is a finding
        return {"ok": False, "error": type(error).__name__, "said": str(error), "where": traceback.format_exc()[-1500:]}


def run(names: list[str], folder: Path, backend: str, out: Path | None) -> list[Record]:
    """Every step in a child; a signal or a time limit is recorded like any other end."""
    found = []
    for name in names:
        started = time.perf_counter()
        command = [sys.executable, __file__, "step", name, str(folder), "--backend", backend]
        record: Record = {"step": name}
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
            lines = [line for line in ran.stdout.splitlines() if line.startswith("{")]
            told = json.loads(lines[-1]) if lines else {"ok": False, "error": "no answer"}
            record |= {**told, "exit": ran.returncode, "stderr": ran.stderr[-1500:]}
        except subprocess.TimeoutExpired as error:
            record |= {"ok": False, "error": "time limit", "said": f"{LIMIT_S} s", "stderr": str(error.stderr)[-1500:]}
        record["seconds"] = round(time.perf_counter() - started, 2)
        print(json.dumps(record), flush=True)
        found.append(record)
        if out is not None:
            out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({"steps": len(found), "ok": sum(one["ok"] and one.get("right", True) for one in found)}))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("make", "run", "step"))
    parser.add_argument("names", nargs="+", help="FOLDER, or for one step NAME FOLDER")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default=",".join(STEPS))
    parser.add_argument("--backend", default="trt_rtx", choices=tuple(trt_library.EXTRAS))
    asked = parser.parse_args()
    folder = Path(asked.names[-1])
    if asked.do == "make":
        make(folder)
    elif asked.do == "step":
        faulthandler.enable()
        logging.basicConfig(level=logging.DEBUG, format="%(message)s")
        logging.getLogger().handlers[0].addFilter(lambda told: not told.getMessage().startswith(("INFO", "VERBOSE")))
        told = child(asked.names[0], Bench(folder, asked.backend))
        print("\n" + json.dumps(told), flush=True)
        os._exit(0 if told["ok"] else 1)  # not through destructors, whose faults are not what the step found
    else:
        run(asked.only.split(","), folder, asked.backend, asked.out)


if __name__ == "__main__":
    main()
