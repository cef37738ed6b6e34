"""Section of the tasks: for each task what is known about its items, its subjects, and the items that changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hpcq.report.line import Line
from hpcq.report.number_formats import MISSING
from hpcq.report.page.content import PageContent
from hpcq.report.page.item_texts import changed_list
from hpcq.report.page.markup import Content, Html, join, tag
from hpcq.report.page.row_texts import score
from hpcq.report.page.sections import Section, folded, paragraph
from hpcq.report.page.tables import Cell, Heading, Record, bullet_list, data_table
from hpcq.report.rows import Row
from hpcq.report.table import VERDICT_SYMBOLS, format_delta

MAX_SUBJECT_CELLS = 12_000
"""Cells in all tables of subjects: a page stays below 5 MB."""

_WORDS = (
    "Subjects are the members of a group of tasks. Items that changed have another score than the unquantized model's"
    " item. The results file has responses, not prompts: an item is named by its number in the task's data set and by"
    " the digest of its first request. Log-likelihoods are those of the choices, in nats, not normalized by length."
)


def tasks_section(content: PageContent) -> Section | None:
    """Return the section; None if there is nothing to show."""
    parts = [part for task in content.tasks if (part := _task(content, task))]
    if not parts:
        return None
    return Section(id="tasks", link="Tasks", title="Tasks", content=join((paragraph(_WORDS), *parts)))


def _task(content: PageContent, task: str) -> Html | None:
    rows = [row for row in content.rows if row.is_main and row.task == task]
    parts: list[Content] = []
    notes = _notes(content, task)
    if notes:
        parts.append(bullet_list(notes, class_="notes"))
    if task in content.evidence.groups:
        parts.append(_subjects(content, task, rows[0]))
    parts += _changed(content, rows)
    if not parts:
        return None
    counts = sorted({row.n for row in rows if row.value is not None})
    items = f", n = {' or '.join(map(str, counts))}" if counts else ""
    return folded(join((tag("strong", task), f" ({rows[0].metric}{items})")), *parts, class_="task")


def _notes(content: PageContent, task: str) -> list[str]:
    """Return the notes of the plans about the task, which begin with its name."""
    notes = (str(note) for run in content.evidence.runs for note in run.plan_document.get("notes", ()))
    return list(dict.fromkeys(note for note in notes if note.startswith(f"{task}: ")))


def _subjects(content: PageContent, group: str, main: Row) -> Html:
    """Return a table of the subjects and variants."""
    members = content.evidence.groups[group]
    metric = (main.metric, main.filter)
    found = {
        ((row.run, row.variant), row.task): row
        for row in content.rows
        if row.task in set(members) and (row.metric, row.filter) == metric
    }
    lines = [line for line in content.names if any((line, task) in found for task in members)]
    most = max(1, MAX_SUBJECT_CELLS // max(1, len(lines) * len(content.evidence.groups)))
    headings = [
        Heading(name="subject"),
        Heading(name="n", is_number=True),
        *(Heading(name=content.names[line], is_number=True) for line in lines),
    ]
    records = [_subject(task, [found.get((line, task)) for line in lines]) for task in members[:most]]
    more = len(members) - len(records)
    return folded(
        f"{len(members)} subjects",
        data_table(headings, records, label=f"Subjects of {group}"),
        paragraph(f"{more} more subjects: see hpcq report --format csv.") if more else None,
    )


def _subject(task: str, rows: Sequence[Row | None]) -> Record:
    count = max((row.n for row in rows if row), default=0)
    return Record(cells=(task, Cell(content=str(count), value=count), *map(_subject_cell, rows)))


def _subject_cell(row: Row | None) -> str | Cell:
    if row is None or row.value is None:
        return MISSING
    verdict = f" {VERDICT_SYMBOLS[row.paired.verdict]}" if row.paired else ""
    delta = "" if row.delta is None else f" ({format_delta(row, row.delta)}{verdict})"
    return Cell(content=f"{score(row)}{delta}", value=row.value if row.delta is None else row.delta)


def _changed(content: PageContent, rows: Sequence[Row]) -> Iterator[Html]:
    pairs = max(1, sum(bool(one.shown) for one in content.evidence.changed.values()))
    for row in rows:
        line: Line = (row.run, row.variant)
        changed = content.evidence.changed.get((*line, row.task))
        if changed is None:
            continue
        name = tag("strong", content.names[line])
        counts = f": {changed.lower} items lower, {changed.higher} higher than unquantized"
        if not changed.shown:
            yield paragraph(f"{content.names[line]}: no item changed.")
            continue
        yield folded(join((name, counts)), changed_list(changed, pairs=pairs), class_="changed")
