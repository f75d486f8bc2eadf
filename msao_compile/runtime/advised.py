"""Who answers a question, what each side sees of it, and why: the manifest's routes, the fit, and what is known now."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from msao_compile.errors import DeploymentError, InputError, MissingTool
from msao_compile.manifest.mas import Mas
from msao_compile.manifest.offload import Speculation
from msao_compile.manifest.schema import Deployment, Route, RouteName
from msao_compile.runtime.adviser import Adviser
from msao_compile.runtime.answer import Clock
from msao_compile.runtime.bridge import bridge
from msao_compile.runtime.calibrated import Calibration, Reduced
from msao_compile.runtime.clouds import Clouds, unheard
from msao_compile.runtime.device import Device
from msao_compile.runtime.mas.reader import Reader, Seen
from msao_compile.runtime.policy import Choice, Decision, Limits, Wishes
from msao_compile.runtime.session import ModelSession
from msao_compile.runtime.views import Question, View, calibrated, plain, strict

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Taken:
    """A question's route, why, and what each side sees of it."""

    route: Route
    reason: str
    view: View


class Opened(Protocol):
    """What a loaded deployment lends: its models, the device that runs them, and its clouds, where they are others'."""

    folder: Path
    deployment: Deployment
    clouds: Clouds | None
    device: Device

    def session(self, name: str) -> ModelSession:
        """A model, opened at its first use."""

    def shell(self, route: Route) -> ModelSession:
        """A route's model with those of its modules that run here."""


class Advised:
    """A deployment's choices. `epsilon` None is `strict`."""

    def __init__(self, opened: Opened, wishes: Wishes, epsilon: float | None) -> None:
        self.opened, self.wishes, self.epsilon = opened, wishes, epsilon
        self._inside: dict[str, Adviser] = {}
        self._readers: dict[str, Reader | None] = {}
        self._calibrations: dict[str, Calibration] = {}
        self._unsplit: set[str] = set()

    def choose(self, route: str, task: str | None = None) -> tuple[Route, str]:
        """The task's route of this name, or for `auto` the first of the task, or of the first; with the reason.

        Raises:
            InputError: the deployment has no such task or route, or several tasks have it and none is given.
            DeploymentError: the manifest has no routes.
        """
        tasks = dict.fromkeys(entry.task for entry in self.opened.deployment.routes)
        if not tasks:
            raise DeploymentError(f"{self.opened.folder}: its manifest has no routes; build it again with a task")
        if task not in (None, *tasks):
            raise InputError(f"task {task!r} is not one this deployment has: choose {', '.join(tasks)}")
        routes = [entry for entry in self.opened.deployment.routes if task in (None, entry.task)]
        if route == "auto":
            return routes[0], f"auto: {routes[0].name} is the first route of task {routes[0].task}"
        found = [entry for entry in routes if entry.name == route]
        if not found:
            names = ", ".join(dict.fromkeys(entry.name for entry in routes))
            raise InputError(f"route {route!r} is not one this deployment has: choose {names} or auto")
        if len(found) > 1:
            several = " or ".join(entry.task for entry in found)
            raise InputError(f"route {route!r} is there for several tasks: give the task, {several}")
        return found[0], "asked for"

    def take(self, name: str, task: str | None, question: Question, clock: Clock) -> Taken:
        """What is done with a question: `auto` weighs a task's routes, any other name is the route.

        Raises:
            InputError, DeploymentError: as `choose`, or no loss that is `epsilon` at most was shown of the task.
            RemoteError, InputError, MissingTool: the cloud cannot be used, and is not just away.
        """
        route, reason = self.choose(name, task)
        entry = self.speculation(route.task)
        routes = {one.name: one for one in self.opened.deployment.routes if one.task == route.task}
        weighed = frozenset[Choice]() if entry is None else self._weighed(name, entry, routes)
        if entry is None or not weighed:
            return Taken(route, reason, plain(question))
        if self.epsilon is None and name == "speculate":
            return self._told(route, reason, strict(question, self._reader(entry)))
        seen, calibration = Seen(), None if self.epsilon is None else self._calibration(entry, self.epsilon)
        left = None if calibration is None else self._read(calibration, question, seen, clock)
        decision, adviser = self._decision(entry, question, weighed, left), self.adviser(entry)
        if name == "auto":
            route, reason = routes[decision.route], f"auto: {decision.reason}"
        if route.name == "edge":
            return Taken(route, reason, plain(question))
        if calibration is not None and left is not None:
            return self._told(route, reason, calibrated(question, calibration, left, decision, adviser.packing, seen))
        drafted = route.name == "speculate"
        return self._told(route, reason, strict(question, self._reader(entry)) if drafted else plain(question))

    def speculation(self, task: str) -> Speculation | None:
        """Who drafts and who verifies a task."""
        return next((entry for entry in self.opened.deployment.speculation if entry.task == task), None)

    def adviser(self, entry: Speculation) -> Adviser:
        """What is known of a task's cloud; one in this process is there at once.

        Raises:
            RemoteError, InputError, MissingTool: as `Clouds.adviser`.
        """
        if self.opened.clouds is not None:
            return self.opened.clouds.adviser(entry)
        if entry.task not in self._inside:
            self._inside[entry.task] = unheard(self.opened.deployment, entry)
            self._inside[entry.task].link.heard(bridge().loop.time() * 1e3, 0.0)
        return self._inside[entry.task]

    def _weighed(self, name: str, entry: Speculation, routes: dict[RouteName, Route]) -> frozenset[Choice]:
        """The routes to choose from; none where there is nothing to choose. Without a cloud elsewhere, only answers
        that keep to a bound are more than the first route.
        """
        if name == "speculate" or (name == "auto" and self.opened.clouds is None and self.epsilon is not None):
            return frozenset(("speculate",)) if "speculate" in routes else frozenset()
        if name != "auto" or self.opened.clouds is None or "cloud" not in routes:
            return frozenset()
        known: list[Choice] = ["edge", "cloud", "speculate"]
        known += ["split"] * (
            entry.task not in self._unsplit and (self.epsilon is not None or self._alike(entry, routes))
        )
        return frozenset(
            one for one in known if one in routes and (one == "edge" or routes[one].model == entry.verifier)
        )

    def _alike(self, entry: Speculation, routes: dict[RouteName, Route]) -> bool:
        """Whether what a split runs here is built in one precision: then its answer is the cloud's own for sure."""
        deployment, hosts = self.opened.deployment, routes["split"].hosts if "split" in routes else {}
        components = deployment.model(entry.verifier).components
        here = {components[component] for component, host in hosts.items() if host == "edge"}
        made = {(engine.module, engine.precision) for engine in deployment.engines if engine.module in here}
        return len(made) == len(here)

    def _decision(
        self, entry: Speculation, question: Question, weighed: frozenset[Choice], left: Reduced | None
    ) -> Decision:
        edges = [one for one in self.opened.deployment.routes if (one.task, one.name) == (entry.task, "edge")]
        limits = Limits(
            **vars(self.wishes), mode="strict" if left is None else "calibrated", routes=weighed,
            edge_is_verifier=any(one.model == entry.verifier for one in edges),
        )  # fmt: skip
        found = self.adviser(entry).decide(question.sizes, bridge().loop.time() * 1e3, limits, left)
        if found.route == "split" and not self._splits(entry):
            return self._decision(entry, question, weighed - {"split"}, left)
        return found

    def _splits(self, entry: Speculation) -> bool:
        """Whether what a split has here can be opened; where it cannot, it is not weighed again."""
        routes = self.opened.deployment.routes
        try:
            self.opened.shell(next(one for one in routes if (one.task, one.name) == (entry.task, "split")))
        except (DeploymentError, MissingTool) as error:
            logger.warning("route split of task %s is not weighed: %s", entry.task, error)
            self._unsplit.add(entry.task)
        return entry.task not in self._unsplit

    def _read(self, calibration: Calibration, question: Question, seen: Seen, clock: Clock) -> Reduced:
        for kind, count, work in calibration.reader.pieces(question.prompt, question.pictures, seen, clock):
            bridge().run(self.opened.device.run(kind, count, work))
        return calibration.read(question.prompt, len(question.pictures), seen)

    def _told(self, route: Route, reason: str, view: View) -> Taken:
        return Taken(route, f"{reason}; {view.why}" if view.why else reason, view)

    def _reader(self, entry: Speculation) -> Reader | None:
        """The probe of a task, where one was fitted."""
        if entry.task not in self._readers:
            mas = self._fitted(entry)
            self._readers[entry.task] = None if mas is None else Reader(mas, self.opened.session(entry.drafter))
        return self._readers[entry.task]

    def _calibration(self, entry: Speculation, epsilon: float) -> Calibration:
        if entry.task not in self._calibrations:
            drafter = self.opened.session(entry.drafter)
            self._calibrations[entry.task] = Calibration(self._fitted(entry), epsilon, drafter)
        return self._calibrations[entry.task]

    def _fitted(self, entry: Speculation) -> Mas | None:
        mas = self.opened.deployment.mas
        return mas if mas is not None and mas.task == entry.task else None
