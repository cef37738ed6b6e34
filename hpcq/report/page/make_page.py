"""The page: all sections in one HTML file whose policy forbids every connection and every other script."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from string import Template

import hpcq
from hpcq.report.clean_text import isolated
from hpcq.report.page.answer_section import answer_section
from hpcq.report.page.content import PageContent
from hpcq.report.page.cost_section import cost_section
from hpcq.report.page.fidelity_section import fidelity_section
from hpcq.report.page.heat_map import heat_map_section
from hpcq.report.page.markup import escape, join, tag
from hpcq.report.page.plan_section import plan_section
from hpcq.report.page.provenance_section import provenance_section
from hpcq.report.page.score_sections import all_scores_section, further_section, gate_section, table_section
from hpcq.report.page.task_sections import tasks_section
from hpcq.report.page.timeline_section import timeline_section

_FOLDER = Path(__file__).parent
_MAKERS = (
    answer_section,
    gate_section,
    heat_map_section,
    table_section,
    further_section,
    cost_section,
    fidelity_section,
    all_scores_section,
    tasks_section,
    provenance_section,
    plan_section,
    timeline_section,
)


def make_page(content: PageContent) -> str:
    """Return the page."""
    sections = [section for make in _MAKERS if (section := make(content)) is not None]
    links = [tag("li", tag("a", section.link, href=f"#{section.id}")) for section in sections]
    style, script = style_sheet(), read_file("page.js")
    return Template(read_file("page.html")).substitute(
        policy=escape(_policy(style, script)),
        title=isolated(escape(f"{content.runs} – hpcq")),
        style=style,
        runs=join((content.runs,)).source,
        links=tag("ul", *links).source,
        sections=join((section.as_html() for section in sections), "\n").source,
        version=escape(hpcq.__version__),
        script=script,
    )


def style_sheet() -> str:
    """Return the style sheet: colours for both schemes, plots, and the page."""
    dark = f"@media screen and (prefers-color-scheme: dark) {{\n{read_file('dark.css')}}}\n"
    return "\n" + read_file("light.css") + dark + read_file("plots.css") + read_file("page.css")


def read_file(name: str) -> str:
    """Return the content of a file next to this module."""
    return (_FOLDER / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Return the Content-Security-Policy: nothing but this style sheet and this script."""
    return (
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )


def _digest(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
