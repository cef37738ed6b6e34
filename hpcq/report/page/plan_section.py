"""Section of the plan: units with their estimates, and variants that were refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpcq.report.number_formats import MISSING, format_duration
from hpcq.report.page.content import PageContent
from hpcq.report.page.evidence import RunEvidence
from hpcq.report.page.markup import Content, Html, join, tag
from hpcq.report.page.sections import Section, folded, paragraph
from hpcq.report.page.tables import Cell, Heading, Record, bullet_list, data_table

MAX_UNITS = 600
"""Units in the table: a page stays below 5 MB."""

_HEADINGS = (
    Heading(name="unit"),
    Heading(name="kind", is_choice=True),
    Heading(name="tasks"),
    Heading(name="GPU class", is_choice=True),
    Heading(name="nodes × GPUs", is_number=True),
    Heading(name="parallel", is_number=True),
    Heading(name="GiB per GPU", is_number=True),
    Heading(name="estimate", is_number=True),
    Heading(name="depends on", is_number=True),
)


def plan_section(content: PageContent) -> Section | None:
    """Return the section; None without a plan."""
    parts = [_plan(run) for run in content.evidence.runs if run.plan_document.get("units")]
    return Section(id="plan", link="Plan", title="Plan", content=join(parts)) if parts else None


def _plan(run: RunEvidence) -> Html:
    units = list(run.plan_document["units"])
    parts: list[Content] = [tag("h3", run.name), paragraph(_totals(run.plan_document))]
    refused = run.plan_document.get("refused") or ()
    if refused:
        sentences = [f"{one.get('variant')}: {one.get('reason')} {one.get('suggestion') or ''}" for one in refused]
        parts += [tag("h4", "Refused before the run"), bullet_list(sentences, class_="notes")]
    table = data_table(_HEADINGS, map(_unit, units[:MAX_UNITS]), label=f"Units of {run.name}", can_filter=True)
    more = paragraph(f"{MAX_UNITS} of {len(units)} units; plan.json has all.") if len(units) > MAX_UNITS else None
    parts.append(folded(f"{len(units)} units", more, table, class_="more"))
    parts.append(bullet_list([str(note) for note in run.plan_document.get("estimate_notes") or ()], class_="notes"))
    return join(parts)


def _totals(plan: Mapping[str, Any]) -> str:
    """Return the estimates of the plan in words."""
    totals = plan.get("totals") or {}
    hours = totals.get("gpu_hours") or {}
    parts = [f"{value:.3g} GPU-hours on {name}" for name, value in hours.items()]
    if totals.get("wall_seconds"):
        parts.append(f"{format_duration(totals['wall_seconds'])} from start to end")
    return f"Estimates of the plan: {', '.join(parts)}." if parts else "The plan has no estimates."


def _unit(unit: Mapping[str, Any]) -> Record:
    seconds, memory = unit.get("seconds"), unit.get("memory_gib_per_gpu")
    gpus = f"{unit.get('nodes') or 1} × {unit.get('gpus_per_node') or 0}"
    parallel = f"{unit.get('tensor_parallel') or 1} tensor, {unit.get('pipeline_parallel') or 1} pipeline"
    return Record(
        cells=(
            str(unit.get("id") or unit.get("variant") or ""),
            str(unit.get("kind") or ""),
            ", ".join(map(str, unit.get("tasks") or ())),
            str(unit.get("gpu_class") or ""),
            gpus,
            parallel,
            Cell(content=MISSING if memory is None else f"{memory:.1f}", value=memory),
            Cell(content=format_duration(seconds), value=seconds),
            str(len(unit.get("depends_on") or ())),
        )
    )
