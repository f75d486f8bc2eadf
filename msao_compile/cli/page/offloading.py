"""What the report shows of work shared by edge and cloud: speculation, and what fitting found and proved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msao_compile.cli.page.plots import Axis, Line, Plot, plot, round_limit
from msao_compile.manifest import offload
from msao_compile.manifest.fit_evidence import Candidate, MasEvidence, Reliability
from msao_compile.manifest.offload import Acceptance

LOSS, UPPER, ALLOWED, TAKEN = 1, 2, 10, 3
COLOURS = (1, 2, 3, 4, 6, 8)
HIGHEST = 3.0
"""Times the loss that is allowed, where the picture of it ends."""


@dataclass(frozen=True)
class Fact:
    """A number with its name and what it means."""

    name: str
    value: str
    note: str


def facts(evidence: MasEvidence) -> tuple[Fact, ...]:
    """What was found, in a few numbers."""
    samples, times = evidence.samples, evidence.costs_ms
    taken = chosen(evidence)
    link = f"at {evidence.link.mbps:g} Mbit/s and {evidence.link.rtt_ms:g} ms"
    reckoned = Fact(
        "Reckoned time of an answer", f"{times['calibrated']:.1f} ms", f"cloud alone {times['cloud']:.1f} ms, {link}"
    )
    counted = Fact("Samples", f"{samples.fit} + {samples.held_out}", "fitted on, and held out")
    if evidence.bound is None or taken is None:
        none = Fact("Calibrated answers", "none", f"no choice was shown to lose {percent(evidence.epsilon)} at most")
        return counted, none
    bound = evidence.bound
    dropped = f"{percent(taken.share_dropped or 0.0)} of pictures stay here"
    sure = f"{percent(bound.upper)} at most, with {bound.confidence:.0%} confidence; {percent(bound.epsilon)} allowed"
    return (
        Fact("Edge answers alone", percent(taken.share_alone or 0.0), dropped),
        Fact("Loss against the cloud", percent(bound.mean), sure),
        reckoned,
        counted,
    )


def spent(line: offload.Line) -> str:
    """Milliseconds that work takes: what it takes at all, and for each."""
    parts = [f"{line.fixed_ms:.3g}" if line.fixed_ms else "", f"{line.each_ms:.3g} each" if line.each_ms else ""]
    return " + ".join(part for part in parts if part) or "0"


def chosen(evidence: MasEvidence) -> Candidate | None:
    """The candidate that the manifest took."""
    wanted = (evidence.chosen.tau_alone, evidence.chosen.tau_drop)
    held = [one for one in evidence.candidates if one.verdict == "held"]
    return next((one for one in held if (one.tau_alone, one.tau_drop) == wanted), None)


def trade(evidence: MasEvidence) -> Plot:
    """The share of answers that the edge gives alone, against what is lost, on held-out samples."""
    points = sorted(evidence.curve, key=lambda one: one.share)
    limit = round_limit(HIGHEST * evidence.epsilon)
    largest = max((one.share for one in points), default=1.0) or 1.0
    across = Axis("answered by the edge alone", min(round_limit(largest), 1.0), percent)
    lines = [
        Line("loss", tuple((one.share, one.loss) for one in points), LOSS),
        Line("upper 95 % bound", tuple((one.share, one.upper) for one in points), UPPER),
        Line("allowed", ((0.0, evidence.epsilon), (across.limit, evidence.epsilon)), ALLOWED, dashed=True),
    ]
    taken = chosen(evidence)
    said = "No choice was shown to lose little enough."
    if taken is not None and evidence.bound is not None:
        spot = ((taken.share_alone or 0.0, taken.upper or 0.0),)
        lines.append(Line("taken", spot, TAKEN, sizes=(0.4,)))
        said = (
            f"Taken: {percent(spot[0][0])} alone, {percent(evidence.bound.mean)} lost, {percent(evidence.bound.upper)} "
            "at most."
        )
    caption = "Answers of the edge alone, and what they lose"
    return plot("trade", caption, (across, Axis("mean loss against the cloud", limit, percent)), lines, said)


def reliability(evidence: MasEvidence) -> Plot:
    """What was said of chances, against what came true, on held-out samples."""
    ideal = Line("as said", ((0.0, 0.0), (1.0, 1.0)), 0, dashed=True)
    lines = [
        ideal,
        *(_reliability(one, COLOURS[index % len(COLOURS)]) for index, one in enumerate(evidence.reliability)),
    ]
    said = "; ".join(f"{one.name}: calibration error {one.ece:.3f}" for one in evidence.reliability)
    axes = (Axis("chance as said", 1.0, percent), Axis("share that came true", 1.0, percent))
    return plot("reliability", "What was said of chances, and what came true", axes, lines, said)


def acceptance(task: str, steps: Acceptance) -> Plot:
    """The chance that a draft is kept, by the drafter's confidence."""
    ends = (*steps.from_confidence[1:], 1.0)
    points = tuple(
        point
        for start, end, chance in zip(steps.from_confidence, ends, steps.chance, strict=True)
        for point in ((start, chance), (end, chance))
    )
    axes = (Axis("confidence of the drafter", 1.0, percent), Axis("chance that the draft is kept", 1.0, percent))
    said = f"{percent(steps.chance[0])} of the least sure drafts, {percent(steps.chance[-1])} of the surest."
    return plot(f"acceptance-{task}", f"Drafts of task {task}", axes, [Line("kept", points, 1)], said)


def percent(value: float) -> str:
    """A share as people read it: `0.8 %`, `49 %`."""
    return f"{100 * value:.2g} %" if value < 0.1 else f"{100 * value:.0f} %"


def tested(evidence: MasEvidence) -> Sequence[Candidate]:
    """Candidates that were tested, from safe to fast."""
    return [one for one in evidence.candidates if one.verdict != "not tested"]


def _reliability(one: Reliability, colour: int) -> Line:
    total = sum(each.count for each in one.bins) or 1
    points = tuple((each.chance, each.share) for each in one.bins)
    return Line(one.name, points, colour, sizes=tuple(each.count / total for each in one.bins))
