"""`run`: one answer, streamed, with a line that says where its time went."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msao_compile.cli import draw, units
from msao_compile.cli.options import (
    Calibrated,
    CloudAddress,
    CloudPatience,
    CloudRoots,
    CloudToken,
    DeploymentFolder,
    Json,
    Quiet,
    Wish,
    link_options,
    wishes_of,
)
from msao_compile.cli.talk import talk_of
from msao_compile.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from msao_compile.runtime.answer import Answer, Piece

AUTO = "auto: "
"""Begins the reason of a route that nobody asked for by name."""


class RouteChoice(StrEnum):
    """The routes a user may ask for."""

    AUTO = "auto"
    EDGE = "edge"
    CLOUD = "cloud"
    SPLIT = "split"
    SPECULATE = "speculate"


def run(
    context: typer.Context,
    deployment: DeploymentFolder,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="What to ask.", show_default=False)],
    image: Annotated[str | None, typer.Option(metavar="F", help="A picture to ask about.", show_default=False)] = None,
    route: Annotated[
        RouteChoice, typer.Option(help="Where the answer is computed; without --cloud auto is the edge.")
    ] = RouteChoice.AUTO,
    task: Annotated[
        str | None, typer.Option(metavar="T", help="Which task, where several have the route.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Stop after so many tokens.")] = 32,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 0.0,
    cloud: CloudAddress = None,
    cloud_token_file: CloudToken = None,
    cloud_roots: CloudRoots = None,
    cloud_patience: CloudPatience = None,
    calibrated: Calibrated = None,
    wish: Wish = None,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the draw where the temperature is above 0.")] = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer one prompt with a deployment, and say where the time went."""
    from msao_compile.runtime import load

    talk = talk_of(context, as_json, quiet)
    options: dict[str, Any] = {
        "image": image,
        "route": route.value,
        "task": task,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    asked = link_options(cloud, cloud_token_file, cloud_roots, cloud_patience)
    with load(
        deployment, cloud=cloud, cloud_options=asked, calibrated=calibrated, wishes=wishes_of(wish, cloud)
    ) as runtime:
        if as_json:
            found = runtime.generate(prompt, **options)
            talk.reply(asdict(found), lambda: None)
        else:
            found = show(runtime.stream(prompt, **options))
        talk.say(account(found))


def show(pieces: Iterable[Piece]) -> Answer:
    """Write the pieces to stdout as they come and give the answer that the last one carries."""
    answer = None
    for piece in pieces:
        draw.words(piece.text)
        answer = piece.answer or answer
    draw.words("\n")
    if answer is None:
        raise StageError("the stream ended without an answer; run again with --json to see what the runtime returns")
    return answer


def account(answer: Answer) -> str:
    """Where an answer's time and bytes went, on one line."""
    timing = answer.timing
    modules = ", ".join(f"{name} {units.milliseconds(ms)}" for name, ms in timing.modules_ms.items())
    parts = [
        answer.route + _standing(answer),
        f"first token {units.milliseconds(timing.ttft_ms)} ms" + (f" ({modules})" if modules else ""),
        f"{units.milliseconds(timing.tpot_ms)} ms/token" if timing.tpot_ms is not None else "",
        units.plural(len(answer.token_ids), "token"),
        f"{units.size(timing.bytes_up)} sent"
        + (f", {units.size(timing.bytes_down)} received" if timing.bytes_down else ""),
    ]
    return " · ".join(part for part in parts if part)


def _standing(answer: Answer) -> str:
    """Whose tokens these are, of a route where that is a question."""
    drafts, chosen = answer.drafts, answer.reason.startswith(AUTO)
    if answer.alone:
        return ", not verified: the edge is sure of its own answer"
    if drafts is None and answer.route == "edge" and chosen and not answer.verified:
        return f", not verified: {answer.reason.removeprefix(AUTO)}"
    if drafts is None:
        return "" if answer.verified or answer.route == "edge" else ", not verified: the edge model finished it"
    kept = f", {drafts['accepted']} of {drafts['drafted']} drafts kept in {units.plural(drafts['rounds'], 'round')}"
    return (", verified by the cloud model" if answer.verified else ", not verified") + kept
