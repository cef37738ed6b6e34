"""Heat map of the differences: a table of variants and tasks, whose cells have colours, symbols and words."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from hpcq.report.add_comparisons import SuiteResult
from hpcq.report.line import Line
from hpcq.report.page.content import PageContent
from hpcq.report.page.markup import Html, join, tag
from hpcq.report.page.row_texts import difference_sentence, row_id
from hpcq.report.page.sections import Section, paragraph
from hpcq.report.page.tables import scrollable
from hpcq.report.paired import Verdict
from hpcq.report.rows import UNQUANTIZED_TOOL, Row
from hpcq.report.table import VERDICT_SYMBOLS, format_interval, format_points, format_signed

BINS = (1.0, 2.0, 5.0, 10.0)
"""Smallest difference of each colour, as a multiple of the margin."""
MAX_EXPLAINED = 1000
"""Cells of a heat map that have their explanation; with more, the table of all scores has it."""

_TITLE = "Difference from unquantized on the same items, percentage points"
_HINT = (
    "Rows are variants, columns are tasks. Point at a cell, or move to it with Tab and the arrow keys, to read its"
    " interval, items and detectable difference. Enter shows its line in the table of all scores."
)


def heat_map_section(content: PageContent) -> Section | None:
    """Return the section; None if nothing was compared."""
    compared = [row for row in content.rows if row.is_main and row.paired]
    if not compared:
        return None
    margin = 100 * next(row.paired.margin for row in compared if row.paired)
    tasks = list(dict.fromkeys(row.task for row in compared))
    lines = dict.fromkeys((row.run, row.variant) for row in content.rows if row.tool != UNQUANTIZED_TOOL)
    suites = {(suite.run, suite.variant): suite for suite in content.suites}
    head = tag("tr", *(tag("th", name, scope="col") for name in ("variant", *tasks, *(["mean"] if suites else []))))
    is_explained = len(lines) * len(tasks) <= MAX_EXPLAINED
    body = [
        tag(
            "tr",
            tag("th", content.names[line], scope="row"),
            *(_cell(content, content.main.get((line, task)), is_explained=is_explained) for task in tasks),
            _mean_cell(suites, line) if suites else None,
        )
        for line in lines
    ]
    table = tag("table", tag("thead", head), tag("tbody", join(body, "\n")), class_="heat")
    parts = (
        _legend(margin),
        paragraph(_HINT, class_="hint"),
        scrollable(table, _TITLE),
        paragraph(_explanation(margin)),
    )
    return Section(id="differences", link="Differences", title=f"{_TITLE}, with 95 % interval", content=join(parts))


def difference_text(row: Row) -> str:
    """Return the difference of a compared row and the symbol of its verdict."""
    symbol = f" {VERDICT_SYMBOLS[row.paired.verdict]}" if row.paired else ""
    return f"{format_signed(100 * (row.delta or 0.0))}{symbol}"


def shade(delta: float, margin: float) -> str:
    """Return the class of the colour: 'h0' within the margin, 'up1' … 'up4' above it, 'down1' … 'down4' below."""
    number = sum(abs(delta) >= limit * margin for limit in BINS)
    return f"{'up' if delta > 0 else 'down'}{number}" if number else "h0"


def _cell(content: PageContent, row: Row | None, *, is_explained: bool) -> Html:
    if row is None or row.value is None or row.paired is None or row.delta is None:
        return tag("td", absence(row), class_="none")
    paired, identifier = row.paired, row_id(content, row)
    is_open = paired.verdict is Verdict.CANNOT_TELL
    link = tag(
        "a",
        difference_text(row),
        href=f"#{identifier}",
        aria_describedby=f"tip-{identifier}" if is_explained else None,
    )
    name = content.names[row.run, row.variant]
    tip = tag("span", f"{name}, {difference_sentence(row)}", class_="tip", role="tooltip", id=f"tip-{identifier}")
    shades = shade(row.delta, paired.margin) + (" open" if is_open else "")
    return tag("td", link, tip if is_explained else None, class_=shades)


def absence(row: Row | None) -> str:
    """Return why a cell has no difference."""
    if row is None:
        return "not in the plan"
    if row.value is None:
        return row.failure.state if row.failure else "withheld" if row.is_withheld else "no score"
    return "not comparable"


def _mean_cell(suites: Mapping[Line, SuiteResult], line: Line) -> Html:
    suite = suites.get(line)
    if suite is None:
        return tag("td", class_="none")
    text = f"{format_signed(100 * suite.delta)} {VERDICT_SYMBOLS[suite.verdict]}"
    interval = tag("small", format_interval(suite.delta_low, suite.delta_high))
    is_open = suite.verdict is Verdict.CANNOT_TELL
    return tag("td", text, interval, class_=f"{shade(suite.delta, suite.margin)} mean{' open' if is_open else ''}")


def _legend(margin: float) -> Html:
    """Return what colours and symbols mean."""
    ends = [f"{limit * margin:g}" for limit in BINS]
    ranges = [f"{low} to {high}" for low, high in pairwise(ends)] + [f"{ends[-1]} or more"]
    keys = [("h0", f"below {ends[0]}"), *((f"down{at}", f"lower by {ranges[at - 1]}") for at in range(1, 5))]
    keys += [(f"up{at}", f"higher by {ranges[at - 1]}") for at in range(1, 5)]
    colours = [tag("li", tag("span", class_=f"key {shade_class}"), text) for shade_class, text in keys]
    symbols = [tag("li", f"{symbol} {verdict}") for verdict, symbol in VERDICT_SYMBOLS.items()]
    hatched = tag("li", tag("span", class_="key h0 open"), "hatched: cannot tell")
    return tag("ul", *symbols, hatched, *colours, class_="legend", aria_label="Legend")


def _explanation(margin: float) -> str:
    return (
        f"Equivalent: the difference is within {format_points(margin)} (two one-sided tests at 5 %). Worse, better: the"
        " exact McNemar test or a paired bootstrap finds a difference, after Holm's correction for all cells. Cannot"
        " tell: the items show neither. This is no evidence that there is no difference."
    )
