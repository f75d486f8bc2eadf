"""`load` and the loaded deployment: the device's contract."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msao_compile.errors import InputError
from msao_compile.manifest.schema import Deployment, Model, Route
from msao_compile.runtime.answer import Answer, Clock, Piece
from msao_compile.runtime.cloud import CloudSide
from msao_compile.runtime.engines import Engines
from msao_compile.runtime.forward import forward
from msao_compile.runtime.loader import read_manifest
from msao_compile.runtime.routes import Question, RouteRun, edge, remote
from msao_compile.runtime.sampling import SamplingParameters
from msao_compile.runtime.session import ModelSession
from msao_compile.runtime.wire.base import Link
from msao_compile.runtime.wire.loopback import Loopback

if TYPE_CHECKING:
    from PIL.Image import Image

    Picture = str | os.PathLike[str] | bytes | Image


def load(folder: str | os.PathLike[str], cloud: str | None = None, verify: bool = True) -> Runtime:
    """Open a deployment folder.

    Args:
        folder: what `msao-compile build` wrote.
        cloud: address of a cloud that serves the same deployment; without one the cloud model runs in this process.
        verify: check the SHA-256 of every file before it is used, not its size alone.

    Raises:
        DeploymentError: the manifest or a file is missing, damaged or of another schema.
        MissingTool: no installed backend can run it; names the extra.
    """
    if cloud is not None:
        raise InputError(
            f"cloud {cloud!r}: clouds in other processes are not served by this version yet; leave `cloud` "
            "out to run the cloud model in this process"
        )
    path = Path(folder)
    return Runtime(path, read_manifest(path), verify)


class Runtime:
    """A loaded deployment. Models are opened at their first use; a module that two of them share is opened once."""

    def __init__(self, folder: Path, deployment: Deployment, verify: bool) -> None:
        self.folder = folder
        self.deployment = deployment
        self.engines = Engines(folder, deployment, verify)
        self._sessions: dict[str, ModelSession] = {}

    def generate(self, prompt: str, image: Picture | Sequence[Picture] | None = None, **options: Any) -> Answer:
        """The whole answer; options as in `stream`."""
        answers = [piece.answer for piece in self.stream(prompt, image, **options) if piece.answer is not None]
        return answers[0]

    def stream(
        self,
        prompt: str,
        image: Picture | Sequence[Picture] | None = None,
        max_new_tokens: int = 32,
        route: str = "auto",
        **sampling: Any,
    ) -> Iterator[Piece]:
        """Pieces of text as they become known; the last piece carries the `Answer`.

        Args:
            prompt: the user's words; the checkpoint's chat template is put around them.
            image: a path, bytes or PIL picture, or several.
            max_new_tokens: at most so many tokens.
            route: `edge`, `cloud`, `split`, or `auto`: the edge where it has a model, else the cloud.
            sampling: temperature (0 = greedy), top_k, top_p, seed.

        Raises:
            InputError: an unknown route, bad picture or prompt, or a request beyond the KV cache's capacity.
        """
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {max_new_tokens}: ask for at least one token")
        taken, reason = self.choose(route)
        question = Question(prompt, _pictures(image), max_new_tokens, SamplingParameters(**sampling))
        run = self._start(taken, question)
        decoder, ids, shown = run.tokenizer.stream_decoder(), [], ""
        for token in run.tokens:
            ids.append(token)
            if text := decoder.push(token):
                shown += text
                yield Piece(text)
        rest = decoder.flush()
        timing = run.clock.timing(run.traffic.up, run.traffic.down)
        yield Piece(rest, Answer(shown + rest, tuple(ids), taken.name, reason, run.verified, timing))

    def choose(self, route: str) -> tuple[Route, str]:
        """The manifest's route of this name, or for `auto` its first; with the reason.

        Raises:
            InputError: the deployment has no such route.
        """
        routes = {entry.name: entry for entry in self.deployment.routes}
        if route == "auto":
            first = self.deployment.routes[0]
            return first, f"auto: {first.name} is the first route of the manifest"
        found = next((entry for name, entry in routes.items() if name == route), None)
        if found is None:
            raise InputError(f"route {route!r} is not one this deployment has: choose {', '.join(routes)} or auto")
        return found, "asked for"

    def forward(self, inputs: Mapping[str, np.ndarray], model: str | None = None) -> dict[str, np.ndarray]:
        """One forward pass over named Hugging Face inputs: `logits` [batch, sequence, vocabulary], float32."""
        return forward(self.session(model or self.deployment.models[0].name), inputs)

    def session(self, name: str) -> ModelSession:
        """The loaded model called `name`.

        Raises:
            InputError: the deployment has no such model.
        """
        if name not in self._sessions:
            self._sessions[name] = self.engines.session(self._model(name))
        return self._sessions[name]

    def _model(self, name: str) -> Model:
        known = {model.name: model for model in self.deployment.models}
        if name not in known:
            raise InputError(f"model {name!r} is not one this deployment has: choose {', '.join(known)}")
        return known[name]

    def _start(self, route: Route, question: Question) -> RouteRun:
        session, clock = self.session(route.model), Clock()
        if "cloud" not in route.hosts.values():
            return edge(session, question, clock)
        link: Link = Loopback(CloudSide(session).handle)
        return remote(session, question, clock, link, route)


def _pictures(image: Any) -> tuple[Picture, ...]:
    """None, one picture or several, as a tuple."""
    if image is None:
        return ()
    return tuple(image) if isinstance(image, list | tuple) else (image,)
