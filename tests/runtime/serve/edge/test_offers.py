"""What clients may ask for, where a model is absent or shares its modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from msao_compile.errors import DeploymentError
from msao_compile.manifest.schema import FileRef
from msao_compile.runtime import load
from msao_compile.runtime.api import Runtime
from msao_compile.runtime.serve.edge.errors import Refusal
from msao_compile.runtime.serve.edge.offers import Offers

MISSING = FileRef(path="tokenizer/missing.json", sha256="0" * 64, size_bytes=1)


def with_second(folder: Path, first: bool = False, **changes: Any) -> Runtime:
    """The tiny deployment with a second model `twin` of the same task, changed or not, whose routes stand last."""
    runtime = load(folder)
    whole = runtime.deployment
    twin = whole.models[0].model_copy(update={"name": "twin", **changes})
    routes = [*whole.routes, whole.routes[0].model_copy(update={"model": "twin", "name": "twins"})]
    updated = {"models": (*whole.models, twin), "routes": tuple(reversed(routes) if first else routes)}
    return Runtime(folder, whole.model_copy(update=updated), True)


def test_models_that_share_modules_take_turns(deployment: Path) -> None:
    offers = Offers(with_second(deployment))
    assert offers.lanes["edge"] is offers.lanes["twin"]


def test_a_model_that_cannot_run_here_is_told_when_asked_for(deployment: Path) -> None:
    offers = Offers(with_second(deployment, files=(MISSING,)))
    assert list(offers.absent) == ["twin"]
    assert offers.routes_of("twin") == ()
    for name, route in (("twin", "auto"), ("vqa", "twins")):
        with pytest.raises(Refusal) as caught:
            offers.choose(name, route)
        assert (caught.value.fault.status, caught.value.fault.code) == (503, "model_unavailable")
        assert "missing.json" in caught.value.fault.message
    assert offers.choose("vqa", "auto").route == "auto"


def test_auto_passes_over_a_model_that_cannot_run_here(deployment: Path) -> None:
    offers = Offers(with_second(deployment, first=True, files=(MISSING,)))
    chosen = offers.choose("vqa", "auto")
    assert chosen.route in offers.routes_of("edge")
    assert chosen.reason == f"auto: {chosen.route} is the first route of vqa that runs here"


def test_where_no_model_can_run_there_is_no_server(deployment: Path) -> None:
    runtime = load(deployment)
    whole = runtime.deployment
    broken = tuple(model.model_copy(update={"files": (MISSING,)}) for model in whole.models)
    with pytest.raises(DeploymentError, match="missing.json"):
        Offers(Runtime(deployment, whole.model_copy(update={"models": broken}), True))
    with pytest.raises(DeploymentError, match="no routes"):
        Offers(Runtime(deployment, whole.model_copy(update={"routes": ()}), True))
