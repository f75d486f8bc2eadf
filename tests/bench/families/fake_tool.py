"""A command line that answers as msao-compile does, by what `plan.json` in the checkpoint says; no torch."""

from __future__ import annotations

import json
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

COMPONENTS = ("vision_encoder", "decoder")


def main() -> int:
    """One of init, build and parity."""
    command, *words = sys.argv[1:]
    return {"init": init, "build": build, "parity": parity}[command](words)


def init(words: list[str]) -> int:
    """A recipe whose checkpoint is given, with one target as the product proposes it."""
    text = f"""recipe = 1
[models.model]
checkpoint = "{words[0]}"
[targets.local]
device = "local-cpu"
precision = "fp32"
[runtime]
threads = 2
"""
    Path(words[words.index("-o") + 1]).write_text(text)
    with Path(words[0], "visits").open("a") as visits:
        visits.write("init\n")
    return reply({"modules": [{"component": name} for name in COMPONENTS]})


def build(words: list[str]) -> int:
    """A deployment of the dialects asked for, or the failure that the plan holds for one of them."""
    recipe = tomllib.loads(Path(words[0]).read_text())
    checkpoint = Path(recipe["models"]["model"]["checkpoint"])
    dialects = [target["dialect"] for target in recipe["targets"].values()]
    plan = json.loads((checkpoint / "plan.json").read_text())
    talk("split model started (1 of 1)")
    time.sleep(plan.get("sleep", 0))
    held = bytearray(plan.get("allocate", 0))
    talk(f"split model … {len(held) / 1e9:.1f} s, 1 MB")
    for dialect in dialects:
        if dialect in plan.get("refuses", {}):
            return fail(plan["refuses"][dialect].format(checkpoint=checkpoint), plan.get("class", "StageError"))
    folder = Path(words[words.index("--out") + 1], "fake")
    (folder / "evidence").mkdir(parents=True)
    (folder / "evidence" / "build.json").write_text(json.dumps({"stages": [{"peak_rss_bytes": 5_000_000}]}))
    graphs = [{"dialect": dialect} for dialect in dialects]
    manifest = {
        "plan": plan,
        "dialects": dialects,
        "models": [{"components": {name: name for name in COMPONENTS}}],
        "modules": [{"id": name, "graphs": graphs} for name in COMPONENTS],
        "partition_points": [
            {"after": "vision_encoder", "proof": {"verdict": "PASS"}},
            {"after": "decoder", "proof": {"verdict": "FAIL"}},
        ],
    }
    (folder / "deployment.json").write_text(json.dumps(manifest))
    return reply({"deployment": str(folder)})


def parity(words: list[str]) -> int:
    """Rows of every dialect; those that the plan names fail."""
    manifest = json.loads(Path(words[0], "deployment.json").read_text())
    reference = "--reference" in words
    asked = ("logits of the reference", "greedy tokens of the reference")
    subjects = asked if reference else ("whole", "batch of 2", "text")
    failing = manifest["plan"].get("fails", [])
    rows = [
        {
            "subject": subject,
            "dialect": dialect,
            "verdict": "FAIL" if [subject, dialect] in failing else "PASS",
            "max_abs": 0.5 if [subject, dialect] in failing else 2e-6,
        }
        for dialect in manifest["dialects"]
        for subject in subjects
    ]
    if any(row["verdict"] == "FAIL" for row in rows):
        return fail("parity failed", "GateError", rows=rows)
    return reply({"rows": rows})


def reply(facts: dict[str, Any]) -> int:
    """The one object on stdout."""
    print(json.dumps(facts))
    return 0


def fail(sentence: str, kind: str, **facts: Any) -> int:
    """As the product fails: a line on stderr, the object with its error on stdout."""
    talk(f"error: {sentence}")
    reply({**facts, "error": {"class": kind, "message": sentence}})
    return 5 if kind == "GateError" else 3


def talk(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
