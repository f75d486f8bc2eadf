"""`load` and the loaded deployment: the device's contract."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from msao_compile.errors import InputError, PromptError, RemoteError
from msao_compile.manifest.offload import Speculation
from msao_compile.manifest.schema import Deployment, Model, Route
from msao_compile.runtime.advised import Advised
from msao_compile.runtime.answer import Answer, Clock, Piece
from msao_compile.runtime.bridge import bridge
from msao_compile.runtime.calibrated import shown_fit
from msao_compile.runtime.cloud.service import CloudLimits, CloudService
from msao_compile.runtime.clouds import AWAY, Clouds
from msao_compile.runtime.conversation import Prompt
from msao_compile.runtime.device import Device
from msao_compile.runtime.engines import Engines
from msao_compile.runtime.forward import forward
from msao_compile.runtime.loader import read_manifest, refuse_unsigned
from msao_compile.runtime.policy import Choice, Wishes
from msao_compile.runtime.remote import Patience
from msao_compile.runtime.routes import Pair, RouteRun, edge, remote, speculative
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import ModelSession
from msao_compile.runtime.speculate.plan import Account
from msao_compile.runtime.stops import TextUntil, read_stops
from msao_compile.runtime.views import Question, View
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
    wishes: Wishes | None = None,
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
        wishes: a deadline, and what cloud time, edge time and bytes are worth, for route `auto`.

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
        shown_fit(deployment.mas, calibrated)
    clouds = None if cloud is None else Clouds(deployment, cloud, cloud_options)
    return Runtime(path, deployment, verify, clouds, calibrated, wishes)


class Runtime:
    """A loaded deployment. Models are opened at their first use; a module that two of them share is opened once."""

    def __init__(
        self,
        folder: Path,
        deployment: Deployment,
        verify: bool,
        clouds: Clouds | None = None,
        calibrated: float | None = None,
        wishes: Wishes | None = None,
    ) -> None:
        self.folder = folder
        self.clouds, self.advised = clouds, Advised(self, wishes or Wishes(), calibrated)
        self.deployment = deployment
        self.engines = Engines(folder, deployment, verify)
        self._sessions: dict[str, ModelSession] = {}
        self._links: dict[str, Link] = {}
        self._shells: dict[tuple[str, tuple[str, ...]], ModelSession] = {}
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
        stops, clock = read_stops(stop), Clock()
        taken = self.advised.take(route, task, question, clock)
        run = self._start(taken.route, taken.view, clock)
        said, ids = TextUntil(run.tokenizer.stream_decoder(), stops), []
        for token in run.tokens:
            ids.append(token)
            yield Piece(said.push(token))
            if said.ended:
                break
        rest = said.flush()
        timing = run.clock.timing(run.traffic.up, run.traffic.down)
        finish: Literal["stop", "length"] = "stop" if said.ended or len(ids) != run.extent.limit else "length"
        name, account = taken.route.name, run.account
        verified = run.verified and not account.unverified
        yield Piece(rest, Answer(
            said.text, tuple(ids), name, taken.reason + _went(account), verified, timing,
            drafts=vars(account).copy() if name == "speculate" else None, prompt_tokens=run.extent.prompt_tokens,
            finish=finish, alone=bool(account.alone) and not verified,
            payload=taken.view.payload if question.pictures and run.traffic.up else None,
        ))  # fmt: skip

    def choose(self, route: str, task: str | None = None) -> tuple[Route, str]:
        """As `Advised.choose`."""
        return self.advised.choose(route, task)

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

    def _start(self, route: Route, view: View, clock: Clock) -> RouteRun:
        if "cloud" not in route.hosts.values():
            return edge(self.session(route.model), view.there, clock)
        entry, inside = self.advised.speculation(route.task), self.clouds is None
        if entry is not None and entry.verifier == route.model and (route.name == "speculate" or not inside):
            return self._speculative(route, entry, view, clock)
        model = self.session(route.model) if inside else self.shell(route)
        link, patience = (self._loopback(model), Patience()) if inside else self._reached(route)
        return remote(model, view.there, clock, link, route, patience)

    def _speculative(self, route: Route, entry: Speculation, view: View, clock: Clock) -> RouteRun:
        """The drafter with the verifier; where the cloud streams, the drafter stands by."""
        inside, question = self.clouds is None, view.there
        verifier = self.session(entry.verifier) if inside else self.shell(route)
        pair = Pair(self.session(entry.drafter), verifier, self.device)
        stops = frozenset() if question.sampling.ignore_eos else frozenset(verifier.tokenizer.eos_token_ids)
        adviser = self.advised.adviser(entry)
        link, patience = (self._loopback(verifier), Patience()) if inside else self._reached(route)
        allowed: Choice = "speculate" if route.name == "speculate" else "cloud"
        plan = adviser.plan(question.limit, stops, bridge().loop.time() * 1e3, allowed, patience)
        plan = replace(plan, unverified="edge" in route.fallback, alone=view.alone)
        return speculative(pair, view, link, route, plan, adviser, clock)

    def _reached(self, route: Route) -> tuple[Link, Patience]:
        """The way to where a route's model is served, and how long an answer waits for it."""
        link = self._way(route.model)
        return link, self._patience(route, link)

    def _patience(self, route: Route, link: Link) -> Patience:
        """Where nobody else can finish an answer, a cloud is given the time that it takes to start again."""
        if isinstance(link, Absent):
            return Patience(tries=1)  # it was just tried
        options = None if self.clouds is None else self.clouds.options
        quiet_ms = Patience.quiet_ms if options is None else options.patience_s * 1e3
        if "edge" in route.fallback:
            return Patience(quiet_ms=quiet_ms)
        return Patience(tries=LAST_HOPE, quiet_ms=HOPE * quiet_ms)

    def _way(self, model: str) -> Link:
        """A link to the cloud, or one that says why there is none when it is used: so that a fallback can be taken."""
        assert self.clouds is not None  # asked for where there is a cloud
        try:
            return self.clouds.link(model)
        except AWAY as error:
            return Absent(error)

    def shell(self, route: Route) -> ModelSession:
        """A route's model with those of its modules that run here."""
        here = tuple(component for component, host in route.hosts.items() if host == "edge")
        if (route.model, here) not in self._shells:
            self._shells[route.model, here] = self.engines.shell(self._model(route.model), here)
        return self._shells[route.model, here]

    def _loopback(self, session: ModelSession) -> Link:
        """The way to a cloud in this process that serves this model."""
        name = session.model.name
        if name not in self._links:
            service = CloudService(session, CloudLimits(sessions=1))
            self._links[name] = Loopback(service.handle)
        return self._links[name]


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


def _went(account: Account) -> str:
    """What an answer came to on its way, for its reason."""
    gave_up = f"; drafting given up after {account.given_up} drafts" if account.given_up else ""
    ended = "; the cloud stayed away and the edge ended it" if account.unverified and not account.alone else ""
    return gave_up + ended


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
