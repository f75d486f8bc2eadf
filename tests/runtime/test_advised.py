"""What a runtime does with questions about pictures: which route, what each side sees of them, and why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pairs
import pytest
import served

from msao_compile.bench.shape import Shape
from msao_compile.errors import LinkDown
from msao_compile.manifest.offload import Line
from msao_compile.runtime import Answer, Runtime, Wishes, load
from msao_compile.runtime.clouds import Clouds
from msao_compile.runtime.mas.reader import Reader
from tests.manifest.test_mas import BOUND
from tests.runtime.mas.test_reader import fitted
from tests.runtime.test_views import photo

WORDS = "what is it?"
Made = Callable[..., Path]


@pytest.fixture
def made(copy: Path) -> Made:
    """The tiny Idefics3 on both sides, whose edge route is another model's: so only the cloud's answer is its own."""
    path = copy / "deployment.json"
    content = json.loads(path.read_text())
    task, name = content["tasks"][0]["name"], content["models"][0]["name"]
    parts = content["models"][0]["components"]
    speculation = {**pairs.SPECULATION.model_dump(mode="json"), "task": task, "drafter": name, "verifier": name}
    hosts = {"edge": dict.fromkeys(parts, "edge"), "cloud": dict.fromkeys(parts, "cloud")}
    hosts |= {"split": {**hosts["cloud"], "vision_encoder": "edge"}, "speculate": hosts["cloud"]}
    routes = [{"name": one, "task": task, "model": name, "hosts": where, "fallback": ["edge"] * (one != "edge")}
              for one, where in hosts.items()]  # fmt: skip
    times = pairs.times(name, 1.0, 2.0).model_copy(update={"encode": Line(fixed_ms=0, each_ms=1)})
    content["models"][0]["role"] = "target"
    content |= {"speculation": [speculation], "routes": routes, "schema_version": "2.4"}

    def write(mas: dict[str, Any] | None = None, **primitives: Any) -> Path:
        told = times.model_copy(update=primitives).model_dump(mode="json")
        fit = {} if mas is None else {"mas": {**mas, "task": task, "drafter": name, "verifier": name}}
        path.write_text(json.dumps({**content, "primitives": [told], **fit}))
        return copy

    return write


def mas(*reduced: str, probe: str = "words", **more: Any) -> dict[str, Any]:
    return {**fitted(probe, **more).model_dump(mode="json"), "reduced": list(reduced), "bound": BOUND}


def ask(runtime: Runtime, route: str = "auto") -> Answer:
    return runtime.generate(WORDS, [photo()], route=route, max_new_tokens=8, ignore_eos=True)


DEAR = Wishes(edge_price=20.0)
"""So that the edge, whose model is the verifier here, does not answer by itself."""


def test_auto_splits_where_features_are_smaller_than_the_picture_and_learns_what_that_takes(made: Made) -> None:
    folder = made()
    with (
        served.inside(folder) as cloud,
        served.shaped(cloud.port, Shape(mbps=2.0, rtt_ms=2.0)) as proxy,
        load(folder, cloud=f"grpc://127.0.0.1:{proxy.port}", wishes=DEAR) as runtime,
    ):
        wanted = ask(runtime, "cloud")
        assert runtime.clouds is not None
        adviser = runtime.clouds.adviser(runtime.deployment.speculation[0])
        for _ in range(4):  # until the link is known well enough
            found = ask(runtime)
        assert found.route == "split" and found.verified, found.reason
        assert "auto: split is expected to take" in found.reason
        assert found.token_ids == wanted.token_ids
        assert found.timing.bytes_up < wanted.timing.bytes_up and "vision_encoder" in found.timing.modules_ms
        assert adviser.encode_ms.count >= 1
        assert adviser.features_bytes.mean == pytest.approx(found.timing.bytes_up, rel=0.2)


@pytest.mark.parametrize("route", ["split", "cloud", "speculate"])
def test_where_no_cloud_is_there_the_edge_ends_every_route_that_allows_it(made: Made, route: str) -> None:
    folder = made()
    with load(folder, cloud=f"grpc://127.0.0.1:{served.free_port()}") as runtime:
        found = ask(runtime, route)
    assert (found.route, found.verified) == (route, False)
    assert found.reason.endswith("; the cloud stayed away and the edge ended it")
    assert found.token_ids == ask(load(folder), "edge").token_ids


def test_an_edge_that_has_to_end_an_answer_looks_at_pictures_that_it_did_not_draft_from(made: Made) -> None:
    folder = made()
    whole = ask(load(folder), "edge")
    wanted = whole.token_ids
    session = load(folder).session(load(folder).deployment.models[0].name)
    said = int(session.prepare(WORDS, ()).ids[-3])
    dropping = made(mas("drop", word=said))
    with load(dropping, cloud=f"grpc://127.0.0.1:{served.free_port()}") as runtime:
        found = ask(runtime, "speculate")
        assert "not drafted from" in found.reason
        assert not found.verified and found.token_ids == wanted
        assert (found.prompt_tokens, found.finish) == (whole.prompt_tokens, "length")
        text = runtime.generate(WORDS, route="edge", max_new_tokens=8, ignore_eos=True)
        assert text.token_ids != wanted


@pytest.mark.parametrize(("mbps", "payload"), [(0.5, "drop"), (1000.0, "drop")])
def test_what_is_not_needed_crosses_no_link_in_calibrated(made: Made, mbps: float, payload: str) -> None:
    session = load(made()).session(load(made()).deployment.models[0].name)
    folder = made(mas("drop", word=int(session.prepare(WORDS, ()).ids[-3])))
    with (
        served.inside(folder) as cloud,
        served.shaped(cloud.port, Shape(mbps=mbps, rtt_ms=1.0)) as proxy,
        load(folder, cloud=f"grpc://127.0.0.1:{proxy.port}", calibrated=0.01, wishes=DEAR) as runtime,
    ):
        found = ask(runtime)
    assert found.payload == payload and found.timing.bytes_up < len(photo()) / 2
    assert found.reason.endswith(": left out") and "pictures needed with a chance of" in found.reason


def test_pictures_cross_reduced_over_a_poor_link_unless_that_takes_longer_than_it_saves(made: Made) -> None:
    folder = made(mas("thumbnail", probe="classical"))
    with (
        served.inside(folder) as cloud,
        served.shaped(cloud.port, Shape(mbps=1.0, rtt_ms=1.0)) as proxy,
        load(folder, cloud=f"grpc://127.0.0.1:{proxy.port}", calibrated=0.01) as runtime,
    ):
        assert runtime.clouds is not None
        packing = runtime.clouds.adviser(runtime.deployment.speculation[0]).packing
        found = [ask(runtime, "speculate") for _ in range(3)][-1]
        assert found.payload == "thumbnail", found.reason
        assert found.reason.startswith("asked for; pictures needed with a chance of")
        assert packing.left["thumbnail"].count == 2  # of the first link nothing was known
        packing.learn("thumbnail", 1000, 100, 1e6)
        found = ask(runtime, "speculate")
        assert found.payload == "full" and found.reason.endswith("sent whole")


def test_only_the_cloud_models_own_routes_are_weighed(made: Made) -> None:
    runtime = load(made())
    entry = runtime.deployment.speculation[0]
    routes = {one.name: one for one in runtime.deployment.routes}
    other = {**routes, "split": routes["split"].model_copy(update={"model": "other"})}
    weighed = runtime.advised._weighed
    assert weighed("auto", entry, routes) == frozenset()  # nothing to choose without a cloud elsewhere
    runtime.clouds = Clouds(runtime.deployment, "grpc://127.0.0.1:1", None)
    assert weighed("auto", entry, routes) == {"edge", "cloud", "split", "speculate"}
    assert weighed("auto", entry, other) == {"edge", "cloud", "speculate"}
    engines = runtime.deployment.engines
    runtime.deployment = runtime.deployment.model_copy(
        update={"engines": (*engines, *(one.model_copy(update={"precision": "fp16"}) for one in engines))}
    )
    assert weighed("auto", entry, routes) == {"edge", "cloud", "speculate"}  # whose features would it be of?
    runtime.advised.epsilon = 0.01
    assert weighed("auto", entry, routes) == {"edge", "cloud", "split", "speculate"}
    assert weighed("speculate", entry, routes) == {"speculate"} and weighed("cloud", entry, routes) == frozenset()


def test_strictly_the_drafter_goes_by_the_probe_that_was_fitted(made: Made) -> None:
    runtime = load(made(mas(probe="early")))
    assert isinstance(runtime.advised._reader(runtime.deployment.speculation[0]), Reader)
    found = ask(runtime, "speculate")
    assert found.reason == "asked for; drafted from what probe early keeps of the pictures" and found.verified


def test_a_split_that_cannot_run_here_is_not_taken(
    made: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The edge has a drafter of its own, and of the cloud's encoder not the file."""
    folder = made()
    content = json.loads((folder / "deployment.json").read_text())
    model, other = content["models"][0], "0" * 64
    own = model["components"]["vision_encoder"]
    [module] = [one for one in content["modules"] if one["id"] == own]
    moved = json.loads(json.dumps(module).replace(own, other))
    for path in {part["path"] for graph in module["graphs"] for part in (graph["file"], *graph["data"])}:
        moved = json.loads(json.dumps(moved).replace(f'"{path}"', f'"other/{path}"'))
        (folder / "other" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / path, folder / "other" / path)
    engines = [{**one, "module": other} for one in content["engines"] if one["module"] == own]
    content["modules"].append(moved)
    content["engines"] += engines
    content["models"].append({**model, "name": "cloud", "components": {**model["components"], "vision_encoder": other}})
    content["partition_points"] = [{**point, "model": "cloud"} for point in content["partition_points"]]
    content["tasks"][0]["models"].append("cloud")
    content["speculation"][0]["verifier"] = "cloud"
    content["primitives"].append({**content["primitives"][0], "model": "cloud"})
    for route in content["routes"]:
        route["model"] = route["model"] if route["name"] == "edge" else "cloud"
    (folder / "deployment.json").write_text(json.dumps(content))
    there = Path(shutil.copytree(folder, tmp_path / "there"))
    shutil.rmtree(folder / "other")
    with (
        served.inside(there) as cloud,
        served.shaped(cloud.port, Shape(mbps=2.0, rtt_ms=2.0)) as proxy,
        load(there, cloud=f"grpc://127.0.0.1:{proxy.port}") as whole,
        load(folder, cloud=f"grpc://127.0.0.1:{proxy.port}") as bare,
    ):
        assert [ask(whole).route for _ in range(4)][-1] == "split"
        found = [ask(bare) for _ in range(4)]
    assert all(one.verified and one.route in ("cloud", "speculate") for one in found)
    assert caplog.text.count("route split of task") == 1


def test_a_split_that_reached_no_cloud_tells_nothing_of_what_crosses(made: Made) -> None:
    with load(made(), cloud=f"grpc://127.0.0.1:{served.free_port()}") as runtime:
        assert runtime.clouds is not None
        adviser = runtime.clouds.adviser(runtime.deployment.speculation[0])
        before = adviser.observed([1000], 0.0).work.features_bytes
        found = ask(runtime, "split")
        assert found.payload is None and found.timing.bytes_up == 0
        assert adviser.observed([1000], 0.0).work.features_bytes == before > 0


def test_no_drafter_stands_by_for_a_model_that_it_does_not_draft_for(made: Made) -> None:
    """Its tokens may mean something else there."""
    folder = made()
    content = json.loads((folder / "deployment.json").read_text())
    content["models"].append({**content["models"][0], "name": "other"})
    for route in content["routes"]:
        route["model"] = "other" if route["name"] == "split" else route["model"]
    (folder / "deployment.json").write_text(json.dumps(content))
    with load(folder, cloud=f"grpc://127.0.0.1:{served.free_port()}") as runtime:
        assert not ask(runtime, "cloud").verified
        with pytest.raises(LinkDown):
            ask(runtime, "split")
