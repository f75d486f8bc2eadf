"""`fit`: thresholds, sureness and drafts from labelled samples, and what they lose on others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msao_compile.cli import draw, units
from msao_compile.cli.options import DeploymentFolder, Json, Quiet
from msao_compile.cli.talk import Talk, talk_of

if TYPE_CHECKING:
    from msao_compile.manifest.fit_evidence import Candidate, MasEvidence
    from msao_compile.manifest.mas import Mas

TRIALS = 32


def fit(
    context: typer.Context,
    deployment: DeploymentFolder,
    samples: Annotated[
        Path,
        typer.Option(
            metavar="FILE.jsonl",
            show_default=False,
            help="Lines with question, answer and, where there is one, image: a file beside it.",
        ),
    ],
    held_out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            show_default=False,
            help="Samples to show the loss on; without it, two fifths of the others.",
        ),
    ] = None,
    epsilon: Annotated[
        float,
        typer.Option(metavar="E", min=1e-6, max=0.999999, help="The mean loss against the cloud that is allowed."),
    ] = 0.01,
    trials: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="Points that the search tries.")] = TRIALS,
    seed: Annotated[int, typer.Option(metavar="S", min=0, max=2**31 - 1, help="Of the division and the search.")] = 0,
    mbps: Annotated[
        float, typer.Option(metavar="R", min=0.01, help="Rate of the link that times are reckoned with.")
    ] = 50.0,
    rtt_ms: Annotated[float, typer.Option(metavar="MS", min=0.0, help="Its round trip.")] = 20.0,
    setting: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            show_default=False,
            help="Devices to reckon with instead of this machine's times, as `bench --setting` declares them.",
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(metavar="T", help="Only this task.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what was found and change nothing.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fit when the edge answers alone, when pictures stay here and how drafts are made, and show the loss of it.

    The answers of both models to samples with known answers are what it learns from; what they lose is shown on samples
    that it did not learn from. `calibrated` is to be had only where the upper 95 % bound of that loss is E at most."""
    talk = talk_of(context, as_json, quiet)
    arguments = {
        "folder": str(deployment), "samples": str(samples), "held_out": None if held_out is None else str(held_out),
        "task": task, "epsilon": epsilon, "trials": trials, "seed": seed, "mbps": mbps, "rtt_ms": rtt_ms,
        "setting": None if setting is None else str(setting),
    }  # fmt: skip
    _fitted(talk, deployment, arguments, dry_run)


def _fitted(talk: Talk, folder: Path, arguments: dict[str, Any], dry_run: bool) -> None:
    from msao_compile.farm.job import Job, Progress
    from msao_compile.farm.local import run
    from msao_compile.manifest.fit_evidence import MasEvidence
    from msao_compile.manifest.mas import Mas
    from msao_compile.runtime.loader import read_manifest
    from msao_compile.stages.fit import applied

    manifest = read_manifest(folder)

    def tell(told: Progress) -> None:
        if "trial" not in told:
            talk.say(f"{told['set']}: {told['done']} of {told['of']}")

    result = run(Job(function="msao_compile.stages.fit:run", arguments=arguments, phase=f"fit of {folder}"), tell)
    assert isinstance(result.value, dict)  # what the stage is annotated to return
    mas, evidence = Mas.model_validate(result.value["mas"]), MasEvidence.model_validate(result.value["evidence"])
    if not dry_run:
        applied.write(folder, manifest, result.value)
    facts = {
        "deployment": str(folder), "written": not dry_run, "seconds": result.seconds,
        "mas": mas.model_dump(mode="json"), "speculation": result.value["speculation"],
        "evidence": evidence.model_dump(mode="json"),
    }  # fmt: skip
    talk.reply(facts, lambda: _draw(mas, evidence))
    talk.say(f"took {units.seconds(result.seconds)}" + ("; nothing was written" if dry_run else f"; {folder} has it"))


def _draw(mas: Mas, evidence: MasEvidence) -> None:
    for line in lines(mas, evidence):
        draw.line(line)


def lines(mas: Mas, evidence: MasEvidence) -> list[str]:
    """What was found, in words."""
    sets = mas.samples
    found = [f"task {mas.task}: {sets.fit} samples to fit on, {sets.held_out} held out"]
    for one in evidence.sets:
        ways = ", ".join(f"{way.way} {way.right:.1%}" for way in one.answered[:4])
        found.append(f"right on those {'held out' if one.name == 'held out' else 'fitted on'}: {ways}")
    taken = next((one for one in evidence.candidates if _is_taken(one, mas)), None)
    if mas.bound is None or taken is None or taken.share_alone is None or taken.share_dropped is None:
        least = evidence.candidates[0].upper if evidence.candidates else None
        told = "" if least is None else f" (the safest that was tried: {least:.2%})"
        found.append(f"calibrated: not to be had, no choice was shown to lose {evidence.epsilon:.2%} at most{told}")
    else:
        bound = mas.bound
        found.append(
            f"calibrated: the edge answers {taken.share_alone:.1%} alone and {taken.share_dropped:.1%} of pictures "
            f"stay here; {taken.lost} of {bound.samples} lost ({bound.mean:.2%}), at most {bound.upper:.2%} with "
            f"{bound.confidence:.0%} confidence, where {bound.epsilon:.2%} is allowed"
        )
    times = evidence.costs_ms
    found.append(
        f"reckoned{_devices(evidence)} at {evidence.link.mbps:g} Mbit/s and {evidence.link.rtt_ms:g} ms, "
        "mean of an answer: " + ", ".join(f"{name} {value:.1f} ms" for name, value in times.items())
    )
    errors = ", ".join(f"{one.name} {one.ece:.3f}" for one in evidence.reliability)
    return [*found, f"calibration error on held-out samples: {errors}"]


def _devices(evidence: MasEvidence) -> str:
    return "" if evidence.link.devices is None else f" for {' and '.join(evidence.link.devices)}"


def _is_taken(one: Candidate, mas: Mas) -> bool:
    chosen = mas.thresholds
    taken = (chosen.tau_alone, chosen.tau_drop, chosen.probe, mas.reduced)
    return (one.tau_alone, one.tau_drop, one.probe, one.reduced) == taken
