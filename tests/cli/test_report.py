"""The report page: complete, self-contained, escaped, and honest about what is not there."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pairs
import pytest

from msao_compile.cli.page.render import render
from msao_compile.cli.page.sections import LADDER, engines, first_token, longest, sharing
from msao_compile.cli.page.source import Source, read_source
from msao_compile.manifest.evidence import BuildEvidence, RouteTiming, StageRun
from msao_compile.runtime.loader import read_manifest
from msao_compile.stages.fit import applied

from . import fixtures
from .conftest import Cli

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags close in order and gathers what the tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, *names: str) -> list[dict[str, str | None]]:
        """The attributes of every tag with one of these names."""
        return [attributes for tag, attributes in self.tags if tag in names]


@pytest.fixture
def source(deployment: Path) -> Source:
    """The synthetic deployment, read."""
    return read_source(deployment)


def changed(deployment: Path, **parts: Any) -> Source:
    """The deployment read again after a change of its manifest."""
    path = deployment / "deployment.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **parts}))
    return read_source(deployment)


def test_the_command_writes_one_page_where_it_is_told(cli: Cli, deployment: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    ran = cli("report", deployment, "-o", page, "--json")
    assert ran.code == 0
    assert ran.json == {"report": str(page), "size_bytes": page.stat().st_size}
    assert cli("report", deployment).out == f"{deployment / 'report.html'}\n"
    assert (deployment / "report.html").read_bytes() == page.read_bytes()


def test_a_page_that_cannot_be_written_is_wrong_input(cli: Cli, deployment: Path, tmp_path: Path) -> None:
    ran = cli("report", deployment, "-o", tmp_path / "gone" / "page.html")
    assert ran.code == 2
    assert "cannot be written" in ran.err


def test_nothing_on_the_page_is_fetched(source: Source) -> None:
    text = render(source)
    page = Page(text)
    assert page.all("script", "link", "img", "iframe", "object") == []
    assert {value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")} == {
        f"#{name}" for name in ("modules", "sharing", "engines", "parity", "time", "bytes", "cuts", "build", "files")
    }
    assert re.findall(r"url\((.*?)\)", text) == ["#hatch"]
    assert "@import" not in text
    assert "://" not in text


def test_every_picture_and_table_can_be_read_aloud(source: Source) -> None:
    page = Page(render(source))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for picture in page.all("svg"):
        assert picture.get("aria-hidden") == "true" or str(picture["aria-labelledby"]).split()[0] in ids
    assert all(header.get("scope") in ("row", "col") for header in page.all("th"))
    assert len(page.all("h1")) == 1


def test_what_a_deployment_says_of_itself_cannot_become_markup(deployment: Path) -> None:
    nasty = "<script>alert(1)</script><img src=x onerror=y>"
    page = Page(render(changed(deployment, name=nasty, created_by=nasty)))
    assert page.all("script", "img") == []


def test_the_same_deployment_gives_the_same_page(source: Source) -> None:
    assert render(source) == render(source)


def test_what_was_not_made_is_said_and_not_left_blank(deployment: Path) -> None:
    text = render(changed(deployment, evidence={}, engines=[], partition_points=[]))
    Page(text)
    for sentence in (
        "Nothing was compared",
        "No route was measured",
        "No partition point is offered",
        "no record of its build",
        "No engine was built",
        "not made",
    ):
        assert sentence in text


def test_a_step_of_the_ladder_that_was_not_reached_is_no_pass(source: Source) -> None:
    reached = {row.engine.status: [step for step, there in row.steps if there] for row in engines(source)}
    assert reached == {
        "deferred": [],
        "built": ["built"],
        "ran": ["built", "ran"],
        "parity": ["built", "ran", "parity"],
        "qualified": list(LADDER),
    }
    assert '<span class="open">qualified<span class="hidden">: not reached</span></span>' in render(source)


def test_sharing_counts_a_module_once_and_a_copy_for_each_user(source: Source) -> None:
    found = sharing(source)
    assert (found.kept_bytes, found.copied_bytes, found.saved_bytes) == (1_333_000_000, 1_519_000_000, 186_000_000)
    assert [(module.component, users) for module, users in found.shared] == [("vision_encoder", ("edge", "cloud"))]
    assert "1.33 GB on disk instead of 1.52 GB" in render(source)


def test_failures_come_first_in_the_parity_table(source: Source) -> None:
    verdicts = re.findall(r'<td><span class="chip (\w+)">\1</span></td><td>\w+</td><td>', render(source))
    assert verdicts[:3] == ["FAIL", "AMBIGUOUS", "PASS"]


def test_many_stages_are_cut_to_the_longest_and_the_sum_of_the_rest() -> None:
    runs = tuple(StageRun(stage="s", record="", subject=str(n), seconds=n, peak_rss_bytes=n) for n in range(30))
    found = longest(BuildEvidence(stages=runs, tools={}))
    assert len(found) == 21
    assert (found[0].subject, found[-1].stage) == ("29", "10 shorter stages")
    assert (found[-1].seconds, found[-1].peak_rss_bytes) == (45, 9)


def test_later_sections_appear_when_the_manifest_has_them(deployment: Path) -> None:
    assert "Edge and cloud" not in render(read_source(deployment)) and "<h2>Placement</h2>" not in render(
        read_source(deployment)
    )
    entry = fixtures.fit(True)["speculation"]
    identity = read_source(deployment).deployment.modules[0].id
    certificate = {
        "objective": "mean", "objective_s": 0.25, "bound_s": 0.2, "gap": 0.2, "solver": "exact", "seconds": 1.0,
        "tolerance": 1e-6,
    }  # fmt: skip
    copy = {"module": "edge.decoder", "ids": [identity], "device": "<here>", "dtype": "int4"}
    placement = {"copies": [copy], "certificate": certificate}
    guessed = render(changed(deployment, speculation=[entry], placement=placement))
    assert "no placement is more than 20.0 % better (bound 200 ms" in guessed and "<td>int4</td>" in guessed
    Page(guessed)
    assert "Nothing was fitted" in guessed and "a guess" in guessed and "&lt;here&gt;" in guessed


def fitted(folder: Path, shown: bool) -> Page:
    """The page of the deployment after a fit."""
    value = fixtures.fit(shown)
    changed(folder, speculation=[value["speculation"]])
    applied.write(folder, read_manifest(folder), value)
    text = render(read_source(folder))
    page = Page(text)
    page.text = " ".join(re.sub(r"<[^>]*>", " ", text).split())
    return page


def test_a_fit_is_drawn_as_curves_with_their_words(deployment: Path) -> None:
    page = fitted(deployment, True)
    plots = [tag for tag in page.all("svg") if tag.get("class") == "plot"]
    assert [str(tag["aria-labelledby"]).split()[0] for tag in plots] == [
        "trade-title", "reliability-title", "acceptance-vqa-title",
    ]  # fmt: skip
    for word in (
        "Taken: 49 % alone, 0.33 % lost, 1.6 % at most.", "sureness: calibration error 0.020",
        "60 % of the least sure drafts, 97 % of the surest.", "Edge answers alone 49 %", "edge, text alone 47.0 %",
    ):  # fmt: skip
        assert word in page.text
    dots = [float(str(tag["r"])) for tag in page.all("circle")]
    assert len(dots) == 3 and dots[1] < dots[2]  # what was taken, then a bin of 100 and one of 200
    assert "failed" in page.text and "not tested" not in page.text


def test_a_fit_that_showed_nothing_says_so(deployment: Path) -> None:
    page = fitted(deployment, False)
    assert "no choice was shown to lose 2 % at most" in page.text
    assert "No choice was shown to lose little enough." in page.text


def test_forged_evidence_is_refused_and_not_drawn(cli: Cli, deployment: Path) -> None:
    path = deployment / "evidence/parity.json"
    path.write_text(path.read_text().replace("FAIL", "PASS"))
    ran = cli("report", deployment)
    assert ran.code == 2
    assert "evidence/parity.json" in ran.err


def test_modules_stand_in_the_order_they_run_and_the_cloud_is_striped() -> None:
    names = ("cloud/decoder", "cloud/preprocess", "decoder", "embed_tokens", "preprocess", "vision_encoder")
    route = {**fixtures.measure()["routes"][0], "modules_ms": dict.fromkeys(names, 1.0)}
    chart = first_token((RouteTiming.model_validate(route),))
    ordered = ["preprocess", "cloud/preprocess", "vision_encoder", "embed_tokens", "decoder", "cloud/decoder", "other"]
    assert [part.name for part in chart.legend] == ordered
    assert len({(part.colour, part.hatched) for part in chart.legend}) == len(ordered)


def test_measured_times_of_both_sides_are_shown_with_what_grows(tmp_path: Path) -> None:
    times = {"prepare": (4.0, 0.0), "encode": (0.0, 31.25), "prefill": (10.0, 0.125), "decode": (0.0, 0.0),
             "verify": (20.0, 0.5)}  # fmt: skip
    lines = {name: {"fixed_ms": fixed, "each_ms": each} for name, (fixed, each) in times.items()}
    pairs.write(tmp_path, primitives=[{"model": "edge", **lines}])
    page = render(read_source(tmp_path))
    Page(page)
    row = page.split("as measured when this was built")[1].split("<tbody>")[1].split("</tr>")[0]
    assert re.findall(r">([^<>]+)</t[hd]>", row) == [
        "edge", "4", "31.2 each", "10 + 0.125 each", "0", "20 + 0.5 each",
    ]  # fmt: skip
    pairs.write(tmp_path, primitives=[])
    assert "as measured when this was built" not in render(read_source(tmp_path))
