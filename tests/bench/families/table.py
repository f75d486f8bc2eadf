"""The sheet as Markdown: one row a family, then the first sentence of whatever fails."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tests.bench.families.judge import DIALECTS, PASS, Family
from tests.bench.families.resume import Sheet
from tests.bench.report import table

SLOW_BUILD_S = 40.0
NOTHING = "–"
HEADERS = (
    "family",
    "passes",
    "split",
    "export",
    "parity fp32",
    "text-only",
    "batch of 2",
    "generate",
    "dialects",
    "partition points",
    "modules",
    "cases",
    "build, s",
    "of them CPU",
    "peak, MB",
)
LEGEND = f"""\
Each family is a tiny checkpoint with random weights, taken from nothing to a judged deployment with the commands
`init`, `build` (two CPU targets, fp32: dialects fused and portable) and `parity`, alone and with every recorded
reference.

- split, export: the model was taken apart; every module has a graph in the dialect.
- parity fp32: every comparison of the build is PASS; the number is the largest deviation from the torch original.
- text-only: a request without media equals the original; {NOTHING} where none is compared.
- batch of 2: two requests side by side, prompt and steps, equal the original; {NOTHING} where the decoder takes one at
  a time.
- generate: the greedy tokens equal those of every reference that recorded some; {NOTHING} where none did.
- partition points: after which component the model may be cut, proven equal to the whole.
- cases: references whose every output equals ours.
- build: wall seconds of the first build from nothing, beside other families and whatever else the machine did, and the
  processor seconds it took itself. peak: the memory of its largest stage.
- A family passes when split, export, parity, generate and every case hold in at least the fused dialect. Where the
  dialects differ, a column says both."""


def markdown(sheet: Sheet) -> str:
    """The whole page."""
    rows = [sheet.families[name] for name in sorted(sheet.families)]
    parts = [
        "# Families\n",
        f"{header(sheet.about, rows)}\n",
        f"**{summary(rows)}**\n{circumstances(sheet)}\n",
        table(HEADERS, [cells(row) for row in rows]),
        "## What fails\n",
        failures(rows),
        "## How to read it\n",
        f"{LEGEND}\n",
        "## Machine\n",
        table(("", ""), [(name.replace("_", " "), str(value)) for name, value in facts(sheet)]),
    ]
    return "\n".join(parts)


def header(about: Mapping[str, Any], rows: Sequence[Family]) -> str:
    """Which run this is, and a warning where it is not of the whole folder."""
    made = f"Made by `{about['command']}` at commit {about['commit']}."
    missing = int(about["in_folder"]) - len(rows)
    if missing <= 0:
        return made
    return f"**A part only: {len(rows)} of the {about['in_folder']} families of the folder.** {made}"


def summary(rows: Sequence[Family]) -> str:
    """How many pass, and what they took."""
    passing = sum(row.passes for row in rows)
    both = sum(row.dialects == list(DIALECTS) for row in rows)
    # One that failed or was stopped says nothing of how long a build takes.
    builds = [row.build_s for row in rows if row.build_s is not None and row.build_peak_rss_bytes is not None]
    found = f"{passing} of {len(rows)} families pass, {both} in both dialects."
    if not builds:
        return found
    slow = sum(seconds > SLOW_BUILD_S for seconds in builds)
    return (
        f"{found} A build takes {statistics.median(builds):.0f} s (median), at most {max(builds):.0f} s; "
        f"{slow} of {len(builds)} take more than {SLOW_BUILD_S:.0f} s."
    )


def circumstances(sheet: Sheet) -> str:
    """One sentence: how long it took, where and with what."""
    about = sheet.about
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    place = f"{about['machine']['cpu']}, {about['machine']['cores']} cores"
    return f"{sheet.wall_s / 60:.1f} minutes for all of them, {about['jobs']} at a time, on {place}, with {versions}."


def facts(sheet: Sheet) -> list[tuple[str, Any]]:
    """What a reader needs to judge the seconds."""
    about = sheet.about
    own = {
        "wall time of all runs that made it": f"{sheet.wall_s / 60:.1f} min",
        "families at a time": about["jobs"],
        "limits of one family": f"{about['limits']['seconds']:.0f} s, {about['limits']['bytes'] / 1e9:.3g} GB",
    }
    return [*own.items(), *about["machine"].items()]


def failures(rows: Sequence[Family]) -> str:
    """The first sentence of every family that has one, those that pass in one dialect only among them."""
    lines = [
        f"- `{row.name}`{' (passes)' if row.passes else ''}, {row.error.where}: {row.error.sentence}"
        for row in rows
        if row.error is not None
    ]
    silent = [f"- `{row.name}`: {why(row)}" for row in rows if row.error is None and not row.passes]
    return "\n".join([*lines, *silent, ""]) if lines or silent else "Nothing.\n"


def why(row: Family) -> str:
    """Of a family that fails though no command did."""
    fused = DIALECTS[0]
    found = {
        "not split": not row.split,
        "a module has no fused graph": not row.export[fused],
        f"parity is {row.parity[fused]}": row.parity[fused] != PASS,
        f"generated tokens are {row.generate[fused]}": row.generate[fused] not in (None, PASS),
        "a reference was not compared or is not equal": any(case[fused] != PASS for case in row.cases.values()),
    }
    return "; ".join(sentence for sentence, holds in found.items() if holds)


def cells(row: Family) -> tuple[str, ...]:
    """The columns of a family."""
    peak = row.build_peak_rss_bytes
    return (
        row.name,
        "yes" if row.passes else "NO",
        "yes" if row.split else "no",
        both({dialect: "yes" if row.export[dialect] else "no" for dialect in DIALECTS}),
        parity(row),
        both({dialect: row.text_only[dialect] or NOTHING for dialect in DIALECTS}),
        both({dialect: row.batch[dialect] or NOTHING for dialect in DIALECTS}),
        both({dialect: row.generate[dialect] or NOTHING for dialect in DIALECTS}),
        ", ".join(row.dialects) or "none",
        ", ".join(row.points) or NOTHING,
        ", ".join(row.modules) or NOTHING,
        both({dialect: cases(row, dialect) for dialect in DIALECTS}),
        NOTHING if row.build_s is None else f"{row.build_s:.0f}",
        NOTHING if row.build_cpu_s is None else f"{row.build_cpu_s:.0f}",
        NOTHING if peak is None else f"{peak / 1e6:.0f}",
    )


def parity(row: Family) -> str:
    """The worst deviation where both dialects pass, else what each of them gave."""
    if all(row.parity[dialect] == PASS for dialect in DIALECTS):
        return deviation(max((row.max_abs[dialect] for dialect in DIALECTS), key=lambda value: value or 0.0))
    return both({dialect: _one_parity(row, dialect) for dialect in DIALECTS})


def _one_parity(row: Family, dialect: str) -> str:
    verdict = row.parity[dialect]
    if verdict is None:
        return "no"
    found = deviation(row.max_abs[dialect])
    return found if verdict == PASS else f"{verdict} {found}"


def cases(row: Family, dialect: str) -> str:
    """How many references are equal, of how many."""
    if not row.cases:
        return NOTHING
    return f"{sum(case[dialect] == PASS for case in row.cases.values())} of {len(row.cases)}"


def deviation(value: float | None) -> str:
    """A deviation as short as it can be read."""
    return "not finite" if value is None else f"{value:.1e}"


def both(by_dialect: Mapping[str, str]) -> str:
    """One word where the dialects agree, else each with its name."""
    values = set(by_dialect.values())
    return values.pop() if len(values) == 1 else ", ".join(f"{name} {value}" for name, value in by_dialect.items())
