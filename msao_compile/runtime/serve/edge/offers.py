"""What a deployment offers to clients by name: its tasks and its models, those that can run here."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from msao_compile.errors import DeploymentError, InputError, MsaoError
from msao_compile.manifest.schema import Route
from msao_compile.runtime.api import Runtime
from msao_compile.runtime.serve.edge.errors import Fault, Refusal
from msao_compile.runtime.serve.edge.lane import Lane

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """A route of a task as `Runtime.stream` takes it, the lane of its engines, and the reason where it is not its."""

    route: str
    task: str
    lane: Lane
    reason: str | None = None


class Offers:
    """Opens every model that a route needs; one that cannot run here is told when it is asked for.

    Raises:
        DeploymentError: there are no routes.
        MsaoError: as `Runtime.session`, where no model can run here.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.routes = runtime.deployment.routes
        if not self.routes:
            raise DeploymentError(f"{runtime.folder}: its manifest has no routes; build it again with a task")
        self.absent: dict[str, MsaoError] = {}
        models = dict.fromkeys(route.model for route in self.routes)
        for name in models:
            try:
                runtime.session(name)
            except MsaoError as error:
                logger.warning("model %s cannot run here: %s", name, error)
                self.absent[name] = error
        if len(self.absent) == len(models):
            raise next(iter(self.absent.values()))
        self.lanes = _lanes(runtime, models)

    @property
    def names(self) -> tuple[str, ...]:
        """What a request may call `model`: tasks first."""
        tasks, models = [route.task for route in self.routes], [route.model for route in self.routes]
        return tuple(dict.fromkeys([*tasks, *models]))

    def routes_of(self, name: str) -> tuple[str, ...]:
        """The names of the routes that a task or model has and that run here."""
        return tuple(dict.fromkeys(entry.name for entry in self._own(name) if entry.model not in self.absent))

    def _own(self, name: str) -> list[Route]:
        """The routes of a task; those of a model for what is no task.

        Raises:
            Refusal: 404 for what is neither.
        """
        own = [entry for entry in self.routes if entry.task == name]
        own = own or [entry for entry in self.routes if entry.model == name]
        if not own:
            said = f"model {name!r} is not one this server has: choose {', '.join(self.names)}"
            raise Refusal(Fault(404, said, "model", "model_not_found"))
        return own

    def choose(self, name: str, route: str) -> Choice:
        """The route that a request means.

        Raises:
            Refusal: 404 for a name that is none, 400 for a route it does not have, 503 for one that cannot run here.
        """
        own = self._own(name)
        if route == "auto":
            return self._automatic(name, own)
        found = [entry for entry in own if entry.name == route]
        if not found:
            names = ", ".join(dict.fromkeys(entry.name for entry in own))
            said = f"route {route!r} is not one that {name} has: choose {names} or auto"
            raise Refusal(Fault(400, said, "route", "invalid_value"))
        self._check_present(found[0])
        return Choice(found[0].name, found[0].task, self.lanes[found[0].model])

    def _automatic(self, name: str, own: list[Route]) -> Choice:
        if all(entry.task == name for entry in own):
            taken, _ = self.runtime.choose("auto", name)
            if taken.model not in self.absent:
                return Choice("auto", name, self.lanes[taken.model])
        taken = next((entry for entry in own if entry.model not in self.absent), own[0])
        self._check_present(taken)
        reason = f"auto: {taken.name} is the first route of {name} that runs here"
        return Choice(taken.name, taken.task, self.lanes[taken.model], reason)

    def _check_present(self, route: Route) -> None:
        if route.model in self.absent:
            said = f"model {route.model} cannot run here: {self.absent[route.model]}"
            raise Refusal(Fault(503, said, "model", "model_unavailable"))


def _lanes(runtime: Runtime, models: dict[str, None]) -> dict[str, Lane]:
    """A lane for each model; models that share a module share a lane, since an engine serves one request at a time."""
    lanes: dict[str, Lane] = {}
    for name in models:
        if name not in lanes:
            lanes |= dict.fromkeys(_sharing(runtime, name, models), Lane())
    return lanes


def _sharing(runtime: Runtime, name: str, models: dict[str, None]) -> Iterator[str]:
    """The model and those that share a module with it, directly or through others."""
    modules = {other: set(_model_modules(runtime, other)) for other in models}
    found, reach = {name}, set(modules[name])
    while True:
        more = {other for other in models if other not in found and modules[other] & reach}
        if not more:
            yield from found
            return
        found |= more
        reach = reach.union(*(modules[other] for other in more))


def _model_modules(runtime: Runtime, name: str) -> Iterator[str]:
    try:
        yield from runtime.deployment.model(name).components.values()
    except KeyError as error:
        raise InputError(f"model {name!r} is not one this deployment has") from error
