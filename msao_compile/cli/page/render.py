"""Fill the report template; everything that comes from a deployment is escaped."""

from __future__ import annotations

import json

import jinja2
from pydantic import BaseModel

from msao_compile.cli import units
from msao_compile.cli.page import offloading, sections
from msao_compile.cli.page.network import network
from msao_compile.cli.page.palette import colour_of
from msao_compile.cli.page.source import Source


def render(source: Source) -> str:
    """The page as one text; the same source always gives the same text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("msao_compile.cli", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "size": units.size,
        "count": units.count,
        "deviation": units.deviation,
        "plural": units.plural,
        "colour": colour_of,
        "spread": sections.spread,
        "pretty": lambda value: json.dumps(value, indent=1, ensure_ascii=False, default=_plain),
    }
    return environment.get_template("report.html").render(
        source=source,
        deployment=source.deployment,
        sections=sections,
        offloading=offloading,
        network=network(source),
        sharing=sections.sharing(source),
        size_note=units.SIZE_NOTE,
    )


def _plain(value: BaseModel) -> object:
    """What the manifest holds as JSON does."""
    return value.model_dump(mode="json")
