"""Texts and links of single scores."""

from __future__ import annotations

from hpcq.report.comparison_table import format_p
from hpcq.report.number_formats import MISSING
from hpcq.report.page.content import PageContent
from hpcq.report.rows import Row
from hpcq.report.table import format_interval, format_signed, format_value


def row_id(content: PageContent, row: Row) -> str:
    """Return the identifier of a main score in the page. Names can have any characters, so it has numbers."""
    return f"s{list(content.names).index((row.run, row.variant))}-{content.tasks.index(row.task)}"


def percent(value: float | None) -> str:
    """Format a share in percent."""
    return MISSING if value is None else f"{100 * value:.1f}"


def score(row: Row) -> str:
    """Format a score: a share in percent, another metric in its own unit."""
    return MISSING if row.value is None else format_value(row, row.value)


def interval(low: float | None, high: float | None) -> str:
    """Format the interval of a score in percent: '52.1 to 56.0'."""
    return MISSING if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"


def difference_sentence(row: Row) -> str:
    """Return all that is known about the difference of a row that was compared."""
    paired = row.paired
    if paired is None or row.delta is None:
        return f"{row.task}: no difference"
    p_value = paired.p_value if paired.adjusted_p_value is None else paired.adjusted_p_value
    interval_text = format_interval(paired.delta_low, paired.delta_high)
    parts = [
        f"{row.task}: {format_signed(100 * row.delta)} points, 95 % interval {interval_text}",
        f"score {percent(row.value)}, unquantized {percent(row.baseline_value)}",
        f"n = {row.n}",
        *([] if paired.lost is None else [f"{paired.lost} lost, {paired.gained} gained"]),
        f"detectable {100 * paired.detectable:.1f} points",
        f"p = {format_p(p_value)}".replace("= <", "< "),
        str(paired.verdict),
    ]
    return "; ".join(parts)
