"""Sections of the scores: the pivoted table, and one line per score with all that was measured."""

from __future__ import annotations

from collections.abc import Sequence

from hpcq.report.comparison_table import format_p
from hpcq.report.number_formats import MISSING
from hpcq.report.page.content import PageContent
from hpcq.report.page.markup import Content, Html, join, tag
from hpcq.report.page.row_texts import interval, percent, row_id, score
from hpcq.report.page.sections import Section, folded, paragraph
from hpcq.report.page.tables import Cell, Heading, Record, data_table, text_table
from hpcq.report.rows import Row
from hpcq.report.table import format_delta, format_interval

MAX_ROWS = 3000
"""Lines of the table of all scores: a page stays below 5 MB."""

_HEADINGS = (
    Heading(name="variant", is_choice=True),
    Heading(name="task", is_choice=True),
    Heading(name="score, % (95 % interval)", is_number=True),
    Heading(name="n", is_number=True),
    Heading(name="difference (95 % interval)", is_number=True),
    Heading(name="verdict", is_choice=True),
    Heading(name="recovery, %", is_number=True),
    Heading(name="lost", is_number=True),
    Heading(name="gained", is_number=True),
    Heading(name="p", is_number=True),
    Heading(name="detectable", is_number=True),
    Heading(name="metric", is_choice=True),
    Heading(name="marks and remarks"),
)
_NOTE = (
    "Recovery: score divided by the unquantized one's. Lost and gained: items that only the unquantized model, or only"
    " the variant, answers correctly. p: two-sided, after Holm's correction for main scores. Detectable: smallest"
    " difference that these items show with a probability of 80 %. All numbers are in results.h5, or are computed from"
    " it."
)


def table_section(content: PageContent) -> Section:
    """Return the section of the pivoted table, with its notes."""
    return Section(id="table", link="Scores", title=content.table.title, content=text_table(content.table))


def gate_section(content: PageContent) -> Section | None:
    """Return the section of a gate; None if there is none."""
    if content.checks is None:
        return None
    return Section(id="gate", link="Gate", title=content.checks.title, content=text_table(content.checks))


def further_section(content: PageContent) -> Section | None:
    """Return the section of the further tables; None if there are none."""
    if not content.more:
        return None
    parts = [join((tag("h3", table.title), text_table(table))) for table in content.more]
    return Section(id="more", link="Further comparisons", title="Further comparisons", content=join(parts))


def all_scores_section(content: PageContent) -> Section | None:
    """Return the section with one line per score; None without scores."""
    if not content.rows:
        return None
    rows = sorted(content.rows, key=lambda row: not row.is_main)
    shown = rows[:MAX_ROWS]
    parts: list[Content] = [paragraph(_NOTE)]
    if len(rows) > len(shown):
        parts.append(
            paragraph(f"{len(shown)} of {len(rows)} scores, main metrics first. hpcq report --format csv has all.")
        )
    main, others = ([row for row in shown if row.is_main is wanted] for wanted in (True, False))
    parts.append(_table(content, main, label="Main scores"))
    if others:
        title = f"{len(others)} scores in other metrics, and of tasks that are members of groups"
        parts.append(folded(title, _table(content, others, label="Other scores"), class_="more"))
    return Section(id="scores", link="All scores", title="All scores", content=join(parts))


def _table(content: PageContent, rows: Sequence[Row], *, label: str) -> Html:
    records = (Record(cells=_cells(content, row), id=row_id(content, row) if row.is_main else None) for row in rows)
    return data_table(_HEADINGS, records, label=label, can_filter=True)


def _cells(content: PageContent, row: Row) -> Sequence[str | Cell]:
    metric = f"{row.metric} ({row.filter})" if row.filter not in ("none", "") else row.metric
    text = score(row) + ("" if row.low is None else f" ({interval(row.low, row.high)})")
    return (
        content.names[row.run, row.variant],
        row.task,
        Cell(content=text, value=row.value),
        Cell(content=str(row.n), value=row.n),
        *_compared(row),
        metric,
        _remarks(row),
    )


def _compared(row: Row) -> Sequence[str | Cell]:
    paired = row.paired
    delta = MISSING if row.delta is None else format_delta(row, row.delta)
    if paired is None:
        return (Cell(content=delta, value=row.delta), *(MISSING,) * 6)
    p_value = paired.p_value if paired.adjusted_p_value is None else paired.adjusted_p_value
    return (
        Cell(content=f"{delta} ({format_interval(paired.delta_low, paired.delta_high)})", value=row.delta),
        str(paired.verdict),
        Cell(content=percent(paired.recovery), value=paired.recovery),
        Cell(content=MISSING if paired.lost is None else str(paired.lost), value=paired.lost),
        Cell(content=MISSING if paired.gained is None else str(paired.gained), value=paired.gained),
        Cell(content=format_p(p_value), value=p_value),
        Cell(content=f"{100 * paired.detectable:.1f}", value=paired.detectable),
    )


def _remarks(row: Row) -> Cell:
    """Return the marks of a score, why it is missing, and why it is not compared."""
    sentences = [mark.sentence for mark in row.marks]
    if row.failure and row.value is None:
        sentences.append(row.failure.sentence)
    if row.is_cross_backend:
        sentences.append(f"compared with a score of another backend ({row.baseline_backend})")
    if row.baseline_problem:
        sentences.append(f"no difference, because {row.baseline_problem}")
    if row.published_value is not None:
        sentences.append(f"published in {row.published_source}: {row.published_value:.1f}")
    return Cell(content=join([tag("div", sentence, class_="remark") for sentence in sentences]))
