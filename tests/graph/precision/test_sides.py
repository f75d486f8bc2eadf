"""An island that is put together from both graphs gives what a conversion with that island gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from msao_compile.graph.precision.convert import Conversion, convert
from msao_compile.graph.precision.observe import leaving, observed_blocks
from msao_compile.graph.precision.sides import Entered, Sides
from msao_compile.graph.precision.trial import Trial
from msao_compile.manifest.schema import RuntimeSettings
from msao_compile.runtime.backends.base import EngineFile, open_engine

from .samples import run, saved
from .test_half import numbers

WIDTH = 128
SETTINGS = RuntimeSettings(threads=1, arena=True, warm_up=0)


def three_blocks(path: Path) -> Path:
    """Each adds to its input what two products make of it; a head of one product follows."""
    names = [f"m__layers__{block}__{part}" for block in range(3) for part in ("n", "a", "b")]
    shapes = {name: (WIDTH,) if name.endswith("n") else (WIDTH, WIDTH) for name in names} | {"head": (WIDTH, WIDTH)}
    steps = [
        f"n{k} = Mul(x{k}, m__layers__{k}__n) a{k} = MatMul(n{k}, m__layers__{k}__a) t{k} = Tanh(a{k}) "
        f"b{k} = MatMul(t{k}, m__layers__{k}__b) x{k + 1} = Add(x{k}, b{k})"
        for k in range(3)
    ]
    taken = ", ".join(f"float{list(shape)} {name}" for name, shape in shapes.items())
    text = f"g (float[r,{WIDTH}] x0, {taken}) => (float[r,{WIDTH}] y) {{ {' '.join(steps)} y = MatMul(x3, head) }}"
    weights = {name: numbers(*shape, seed=seed) / WIDTH**0.5 for seed, (name, shape) in enumerate(shapes.items())}
    weights |= {name: np.ones(shape, np.float32) for name, shape in shapes.items() if len(shape) == 1}
    return saved(path, text, **weights)


def both(folder: Path) -> Sides:
    source = three_blocks(folder / "plain.onnx")
    convert(source, folder / "int4.onnx", Conversion("int4", "portable"))
    exits = leaving(source)
    opened = []
    for name in ("plain", "int4"):
        observed_blocks(folder / f"{name}.onnx", folder / f"{name}.blocks.onnx", exits)
        engine = open_engine("ort", EngineFile(folder / f"{name}.blocks.onnx", "portable", SETTINGS))
        opened.append(Entered(engine, tuple(exits)))
    return Sides(*opened)


@pytest.mark.parametrize(
    "island", [(), ("m.layers.0",), ("m.layers.1",), ("m.layers.0", "m.layers.2"), ("m.layers.1", "m.layers.2")]
)
def test_an_island_gives_what_the_conversion_with_it_gives(tmp_path: Path, island: tuple[str, ...]) -> None:
    sides, x = both(tmp_path), numbers(4, WIDTH)
    found = sides.with_island({"x0": x}, sides.plain.run({"x0": x}), island)["y"]
    convert(tmp_path / "plain.onnx", tmp_path / "made.onnx", Conversion("int4", "portable", keep_fp32=island))
    made = run(tmp_path / "made.onnx", x0=x)["y"]
    whole = sides.converted.run({"x0": x})["y"]
    apart = np.linalg.norm(found - made) / np.linalg.norm(made)
    assert apart < 0.01  # half's rounding differs where an island begins and ends
    if island:
        assert np.linalg.norm(whole - made) / np.linalg.norm(made) > 5 * max(apart, 0.01)


def test_a_block_alone_has_its_own_error_and_not_what_came_in(tmp_path: Path) -> None:
    sides, x = both(tmp_path), numbers(4, WIDTH)
    plain = sides.plain.run({"x0": x})
    alone, whole = sides.alone({"x0": x}, plain), sides.converted.run({"x0": x})
    first, last = "leaves.m.layers.0", "leaves.m.layers.2"
    np.testing.assert_array_equal(alone[first], whole[first])
    assert np.linalg.norm(alone[last] - plain[last]) < 0.8 * np.linalg.norm(whole[last] - plain[last])


def test_the_smallest_island_that_keeps_the_bound_is_found(tmp_path: Path) -> None:
    sides, x = both(tmp_path), numbers(16, WIDTH)
    trial, plain = Trial(sides, ("y",)), sides.plain.run({"x0": x})
    trial.add({"x0": x}, plain)
    bound = (trial.cosine + 1.0) / 2
    trial.asked = trial.prefixes()
    trial.add({"x0": x}, plain)
    trial.asked = trial.smaller(bound)
    trial.add({"x0": x}, plain)
    chosen = trial.best(bound)
    assert chosen and trial.cosine_with(chosen) >= bound > trial.cosine
    assert all(trial.cosine_with(island) < bound for island in trial.islands if len(island) < len(chosen))
    blocks, [output] = trial.errors()
    assert [one.name for one in blocks] == ["m.layers.0", "m.layers.1", "m.layers.2"]
    total = sum(one.effect or 0.0 for one in blocks)
    assert total == pytest.approx(trial.cosine_with(trial.prefixes()[-1]) - output.min_cosine)
    assert trial.best(1.0) == ()
