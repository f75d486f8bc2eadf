"""`load` and the loaded deployment: the device's contract."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from msao_compile.errors import DeploymentError, InputError, PromptError, RemoteError
from msao_compile.manifest.offload import Speculation
from msao_compile.manifest.schema import Deployment, Model, Route
from msao_compile.runtime.adviser import Adviser
from msao_compile.runtime.answer import Answer, Clock, Piece
from msao_compile.runtime.bridge import bridge
from msao_compile.runtime.calibrated import Calibration
from msao_compile.runtime.cloud.service import CloudLimits, CloudService
from msao_compile.runtime.clouds import AWAY, Clouds, unheard
from msao_compile.runtime.conversation import Prompt
from msao_compile.runtime.device import Device
from msao_compile.runtime.engines import Engines
from msao_compile.runtime.forward import forward
from msao_compile.runtime.loader import read_manifest, refuse_unsigned
from msao_compile.runtime.mas.reader import Reader, Seen
from msao_compile.runtime.policy import Choice, Limits
from msao_compile.runtime.remote import Patience
from msao_compile.runtime.routes import Pair, RouteRun, edge, remote, speculative
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import ModelSession
from msao_compile.runtime.speculate.client import Alone
from msao_compile.runtime.stops import TextUntil, read_stops
from msao_compile.runtime.views import Question, View, calibrated, strict
from msao_compile.runtime.wire.base import Link, Traffic
from msao_compile.runtime.wire.loopback import Loopback
from msao_compile.runtime.wire.message import Message

if TYPE_CHECKING:
    from PIL.Image import Image

    from msao_compile.runtime.wire.kserve.options import LinkOptions

    Picture = str | os.PathLike[str] | bytes | Image


LAST_HOPE = 1000
"""Tries of a route without a fallback: its patience ends before."""
HOPE = 3.0
"""So many times as long an answer waits for its next token where its route has no fallback."""


def load(
    folder: str | os.PathLike[str],
    cloud: str | None = None,
    verify: bool = True,
    trusted_keys: str | os.PathLike[str] | None = None,
    cloud_options: LinkOptions | None = None,
    calibrated: float | None = None,
) -> Runtime:
    """Open a deployment folder.

    Args:
        folder: what `msao-compile build` wrote.
        cloud: address of a cloud that serves the same deployment, `grpc://host:port`, `grpcs://`, `http://` or
            `https://`; without one the cloud model runs in this process.
        verify: check the SHA-256 of every file before it is used, not its size alone.
        trusted_keys: a public key or a folder of them (PEM): a manifest that none of them signed is refused. It holds
            the digest of every other file, so give `verify` with it.
        cloud_options: token, certificates to trust and waits of the link; see `runtime.wire.kserve.options`.
        calibrated: the share of right answers that may be lost on average, as far as `fit` bounded it: then pictures
            that a question does not need are left out, and the edge's answer may stand without the cloud. None, the
            default, is strict: what a cloud answers is its model's own, token for token.

    Raises:
        DeploymentError: the manifest is missing, damaged, of another schema, or not signed by a trusted key; or no loss
            that is `calibrated` at most was shown.
        InputError: `folder` is no path, `cloud` is no address, or there are no trusted keys.
        MissingTool: signatures are asked for and cryptography is not installed.

    Files and backends are looked at when a model is first used; see `Runtime.session`.
    """
    try:
        path = Path(folder)
    except TypeError as error:
        raise InputError(f"the deployment is given as {folder!r}: give the path of its folder") from error
    if trusted_keys is not None:
        refuse_unsigned(path, Path(trusted_keys))
    deployment = read_manifest(path)
    if calibrated is not None:
        _refuse_unshown(path, deployment, calibrated)
    clouds = None if cloud is None else Clouds(deployment, cloud, cloud_options)
    return Runtime(path, deployment, verify, clouds, calibrated)


class Runtime:
    """A loaded deployment. Models are opened at their first use; a module that two of them share is opened once."""

    def __init__(
        self,
        folder: Path,
        deployment: Deployment,
        verify: bool,
        clouds: Clouds | None = None,
        calibrated: float | None = None,
    ) -> None:
        self.folder = folder
        self.clouds, self.calibrated = clouds, calibrated
        self._calibrations: dict[str, Calibration] = {}
        self._readers: dict[str, Reader | None] = {}
        self.deployment = deployment
        self.engines = Engines(folder, deployment, verify)
        self._sessions: dict[str, ModelSession] = {}
        self._links: dict[str, Link] = {}
        self._shells: dict[str, ModelSession] = {}
        self._advisers: dict[str, Adviser] = {}
        self.device = Device("edge")

    def close(self) -> None:
        """Give connections to clouds back; the runtime can be used on, and then makes new ones."""
        if self.clouds is not None:
            self.clouds.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def generate(self, prompt: Prompt, image: Picture | Sequence[Picture] | None = None, **options: Any) -> Answer:
        """The whole answer; options as in `stream`."""
        answers = [piece.answer for piece in self.stream(prompt, image, **options) if piece.answer is not None]
        return answers[0]

    def stream(
        self,
        prompt: Prompt,
        image: Picture | Sequence[Picture] | None = None,
        max_new_tokens: int | None = 32,
        route: str = "auto",
        task: str | None = None,
        stop: str | Sequence[str] = (),
        **sampling: Any,
    ) -> Iterator[Piece]:
        """A piece for every token, empty where its text is not certain yet; the last one carries the `Answer`.

        Args:
            prompt: the user's words, or messages (`role`, `content` as text or as parts of type text and image); the
                checkpoint's chat template is put around them.
            image: a path, bytes or PIL picture, or several.
            max_new_tokens: at most so many tokens; None takes as many as fit.
            route: `edge`, `cloud`, `split`, `speculate`, or `auto`: with a cloud in another process the cheapest of
                those whose answer is the cloud model's own; else the edge where it has a model, or with `calibrated`
                `speculate`, which alone keeps to a bound.
            task: which task's route, where several have it.
            stop: text that ends the answer and is no part of it, one or several.
            sampling: temperature (0 = greedy), top_k, top_p, seed, ignore_eos (to measure).

        Raises:
            InputError: an unknown route, task or option, bad picture or prompt, or a request beyond the KV cache.
            StageError: a module failed or its logits are not finite.
            RemoteError: the cloud cannot be reached or refuses, and the route has no fallback here.
            DeploymentError, MissingTool: as `session`.
        """
        if not isinstance(prompt, str | list | tuple):
            raise PromptError(f"the prompt is given as {type(prompt).__name__}: give text, or a list of messages")
        question = Question(prompt, _pictures(image), _limit(max_new_tokens), SamplingParameters.read(sampling))
        taken, reason = self.choose(route, task)
        if route == "auto" and (self.clouds is not None or self.calibrated is not None):
            taken, reason = self._advised(taken.task, question)
        stops = read_stops(stop)
        run = self._start(taken, question, free=route in ("auto", "speculate"))
        said, ids = TextUntil(run.tokenizer.stream_decoder(), stops), []
        for token in run.tokens:
            ids.append(token)
            yield Piece(said.push(token))
            if said.ended:
                break
        rest = said.flush()
        timing = run.clock.timing(run.traffic.up, run.traffic.down)
        finish: Literal["stop", "length"] = "stop" if said.ended or len(ids) != run.extent.limit else "length"
        drafts = vars(run.account).copy() if taken.name == "speculate" else None
        verified = run.verified and not run.account.unverified
        answer = Answer(said.text, tuple(ids), taken.name, reason, verified, timing, drafts)
        alone = bool(run.account.alone) and not verified
        yield Piece(rest, replace(answer, prompt_tokens=run.extent.prompt_tokens, finish=finish, alone=alone))

    def choose(self, route: str, task: str | None = None) -> tuple[Route, str]:
        """The task's route of this name, or for `auto` the first of the task, or of the first; with the reason.

        Raises:
            InputError: the deployment has no such task or route, or several tasks have it and none is given.
            DeploymentError: the manifest has no routes.
        """
        tasks = dict.fromkeys(entry.task for entry in self.deployment.routes)
        if not tasks:
            raise DeploymentError(f"{self.folder}: its manifest has no routes; build it again with a task")
        if task not in (None, *tasks):
            raise InputError(f"task {task!r} is not one this deployment has: choose {', '.join(tasks)}")
        routes = [entry for entry in self.deployment.routes if task in (None, entry.task)]
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

    def forward(self, inputs: Mapping[str, np.ndarray], model: str | None = None) -> dict[str, np.ndarray]:
        """One forward pass over named Hugging Face inputs: `logits` [batch, sequence, vocabulary], float32.

        Raises:
            InputError: an unknown model or input, or an array that is missing or of another shape or kind.
            DeploymentError, MissingTool: as `session`.
        """
        return forward(self.session(model or self.deployment.models[0].name), inputs)

    def session(self, name: str) -> ModelSession:
        """The model called `name`, loaded at its first use.

        Raises:
            InputError: the deployment has no such model.
            DeploymentError: a file is missing or damaged, no engine runs here, or the family is unknown.
            MissingTool: the backend's library is not installed; names the extra.
        """
        if name not in self._sessions:
            self._sessions[name] = self.engines.session(self._model(name))
        return self._sessions[name]

    def _model(self, name: str) -> Model:
        known = {model.name: model for model in self.deployment.models}
        if name not in known:
            raise InputError(f"model {name!r} is not one this deployment has: choose {', '.join(known)}")
        return known[name]

    def _advised(self, task: str, question: Question) -> tuple[Route, str]:
        """The cheapest of a task's routes that give the cloud model's own answer, by what is known of the cloud now."""
        routes = {entry.name: entry for entry in self.deployment.routes if entry.task == task}
        entry = self._speculation(task)
        if self.clouds is None and self.calibrated is not None and entry is not None and "speculate" in routes:
            return routes["speculate"], "auto: the edge's answer stands only where the loss was bounded"
        if self.clouds is None or entry is None or "cloud" not in routes:
            return self.choose("auto", task)
        adviser = self.clouds.adviser(entry)
        known = {name for name in ("edge", "cloud", "speculate") if name in routes}
        limits = Limits(routes=frozenset(known), edge_is_verifier=routes["edge"].model == entry.verifier)
        decision = adviser.decide(question.sizes, bridge().loop.time() * 1e3, limits)
        return routes[decision.route], f"auto: {decision.reason}"

    def _start(self, route: Route, question: Question, free: bool) -> RouteRun:
        """`free`: the edge may answer alone where that is allowed; a route that was asked for by name is taken."""
        clock = Clock()
        if "cloud" not in route.hosts.values():
            return edge(self.session(route.model), question, clock)
        if self.clouds is None:
            session = self.session(route.model)
            link = self._loopback(session)
            if route.name != "speculate":
                return remote(session, question, clock, link, route, Patience())
        entry = self._speculation(route.task)
        if route.name == "split" or entry is None:
            here = [component for component, host in route.hosts.items() if host == "edge"]
            shell = self.engines.shell(self._model(route.model), here)
            link = self._way(route.model)
            return remote(shell, question, clock, link, route, self._patience(route, link))
        return self._speculative(route, entry, question, free)

    def _speculative(self, route: Route, entry: Speculation, question: Question, free: bool) -> RouteRun:
        """The drafter with the verifier; where the route is the cloud alone, the drafter stands by."""
        inside = self.clouds is None
        verifier = self.session(entry.verifier) if inside else self._shell(entry.verifier)
        pair = Pair(self.session(entry.drafter), verifier, self.device)
        stops = frozenset() if question.sampling.ignore_eos else frozenset(verifier.tokenizer.eos_token_ids)
        adviser = self._inside(entry) if self.clouds is None else self.clouds.adviser(entry)
        allowed: Choice = "cloud" if route.name == "cloud" else "speculate"
        link = self._loopback(verifier) if inside else self._way(entry.verifier)
        plan = adviser.plan(question.limit, stops, bridge().loop.time() * 1e3, allowed, self._patience(route, link))
        plan = replace(plan, unverified="edge" in route.fallback)
        clock = Clock()
        view, alone = self._viewed(entry, question, adviser, clock, free)
        return speculative(pair, view, link, route, replace(plan, alone=alone), adviser, clock)

    def _viewed(
        self, entry: Speculation, question: Question, adviser: Adviser, clock: Clock, free: bool
    ) -> tuple[View, Alone | None]:
        """What each side sees of a question, and who judges whether the edge may answer it alone."""
        if self.calibrated is None or not free:
            return strict(question, self._reader(entry)), None
        calibration, seen = self._calibration(entry, self.calibrated), Seen()
        for kind, count, work in calibration.reader.pieces(question.prompt, question.pictures, seen, clock):
            bridge().run(self.device.run(kind, count, work))
        link = adviser.link.estimate(bridge().loop.time() * 1e3)
        up_ms = None if link is None else link.up_ms(sum(question.sizes)) - link.rtt_ms / 2
        view, left = calibrated(question, calibration, adviser.asking(len(question.pictures)), seen, up_ms)
        return view, left.judge

    def _reader(self, entry: Speculation) -> Reader | None:
        """The probe of a task, where one was fitted."""
        if entry.task not in self._readers:
            mas = self.deployment.mas
            fitted = mas is not None and mas.task == entry.task
            self._readers[entry.task] = Reader(mas, self.session(entry.drafter)) if mas and fitted else None
        return self._readers[entry.task]

    def _patience(self, route: Route, link: Link) -> Patience:
        """Where nobody else can finish an answer, a cloud is given the time that it takes to start again."""
        if isinstance(link, Absent):
            return Patience(tries=1)  # it was just tried
        options = None if self.clouds is None else self.clouds.options
        quiet_ms = Patience.quiet_ms if options is None else options.patience_s * 1e3
        if "edge" in route.fallback:
            return Patience(quiet_ms=quiet_ms)
        return Patience(tries=LAST_HOPE, quiet_ms=HOPE * quiet_ms)

    def _calibration(self, entry: Speculation, epsilon: float) -> Calibration:
        if entry.task not in self._calibrations:
            mas = self.deployment.mas
            fitted = mas if mas is not None and mas.task == entry.task else None
            self._calibrations[entry.task] = Calibration(fitted, epsilon, self.session(entry.drafter))
        return self._calibrations[entry.task]

    def _way(self, model: str) -> Link:
        """A link to the cloud, or one that says why there is none when it is used: so that a fallback can be taken."""
        assert self.clouds is not None  # asked for where there is a cloud
        try:
            return self.clouds.link(model)
        except AWAY as error:
            return Absent(error)

    def _speculation(self, task: str) -> Speculation | None:
        return next((entry for entry in self.deployment.speculation if entry.task == task), None)

    def _inside(self, entry: Speculation) -> Adviser:
        if entry.task not in self._advisers:
            self._advisers[entry.task] = unheard(self.deployment, entry)
        return self._advisers[entry.task]

    def _shell(self, name: str) -> ModelSession:
        if name not in self._shells:
            self._shells[name] = self.engines.shell(self._model(name))
        return self._shells[name]

    def _loopback(self, session: ModelSession) -> Link:
        """The way to a cloud in this process that serves this model."""
        name = session.model.name
        if name not in self._links:
            service = CloudService(session, CloudLimits(sessions=1))
            self._links[name] = Loopback(service.handle)
        return self._links[name]


def _refuse_unshown(folder: Path, deployment: Deployment, epsilon: float) -> None:
    """Tell at once what else each question would be told, or, on a route that asks no cloud, none."""
    mas = deployment.mas
    if mas is None or not mas.calibrated(epsilon):
        shown = "nothing" if mas is None or mas.bound is None else f"{mas.bound.upper:g}"
        raise DeploymentError(
            f"{folder}: calibrated({epsilon:g}) is asked for and {shown} is what was shown of the loss: allow more, or "
            "run `msao-compile fit DEPLOYMENT --samples FILE`"
        )


class Absent:
    """A link to nowhere."""

    def __init__(self, error: RemoteError) -> None:
        self.error = error

    async def call(self, message: Message, traffic: Traffic) -> AsyncIterator[Message]:
        """Raises why there is none."""
        raise self.error
        yield message

    async def close(self) -> None:
        """Nothing is held."""


def _limit(max_new_tokens: Any) -> int | None:
    if max_new_tokens is None:
        return None
    if not isinstance(max_new_tokens, Integral) or max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens!r}: ask for at least one token, in whole numbers")
    return int(max_new_tokens)


def _pictures(image: Any) -> tuple[Picture, ...]:
    """None, one picture or several, as a tuple."""
    if image is None:
        return ()
    return tuple(image) if isinstance(image, list | tuple) else (image,)
