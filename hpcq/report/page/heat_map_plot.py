"""The heat map as a drawing, for `--figures`: the page has it as a table."""

from __future__ import annotations

from collections.abc import Iterator

from hpcq.report.line import Line
from hpcq.report.page.axes import drawing
from hpcq.report.page.content import PageContent, shortened_name
from hpcq.report.page.heat_map import absence, difference_text, shade
from hpcq.report.page.markup import Html, join, tag
from hpcq.report.page.row_texts import difference_sentence

_LEFT, _TOP = 245.0, 30.0
_WIDTH, _HEIGHT, _GAP = 104.0, 26.0, 2.0
_TITLE = "Difference from unquantized on the same items, percentage points"


def heat_map_plot(content: PageContent) -> Html | None:
    """Return the drawing; None if nothing was compared."""
    compared = [row for row in content.rows if row.is_main and row.paired]
    if not compared:
        return None
    tasks = list(dict.fromkeys(row.task for row in compared))
    lines = list(dict.fromkeys((row.run, row.variant) for row in compared))
    parts = [*_task_names(tasks)]
    for at, line in enumerate(lines):
        parts += _line(content, line, tasks, _TOP + at * _HEIGHT)
    return drawing(
        join(parts),
        width=_LEFT + len(tasks) * _WIDTH,
        height=_TOP + len(lines) * _HEIGHT,
        name="differences",
        title=_TITLE,
        description="Rows are variants, columns are tasks.",
    )


def _task_names(tasks: list[str]) -> Iterator[Html]:
    for column, task in enumerate(tasks):
        middle = _LEFT + (column + 0.5) * _WIDTH
        yield tag("text", shortened_name(task), x=middle, y=_TOP - 10, class_="tick middle")


def _line(content: PageContent, line: Line, tasks: list[str], y: float) -> Iterator[Html]:
    yield tag("text", content.label(line), x=_LEFT - 8, y=y + 17, class_="label end")
    for column, task in enumerate(tasks):
        row = content.main.get((line, task))
        x = _LEFT + column * _WIDTH
        middle = x + (_WIDTH - _GAP) / 2
        if row is None or row.paired is None or row.delta is None:
            yield tag("text", absence(row), x=middle, y=y + 17, class_="tick middle")
            continue
        kind = shade(row.delta, row.paired.margin)
        yield tag(
            "g",
            tag("title", difference_sentence(row)),
            tag("rect", x=x, y=y, width=_WIDTH - _GAP, height=_HEIGHT - _GAP, class_=f"cell {kind}"),
            tag("text", difference_text(row), x=middle, y=y + 17, class_=f"middle {kind}-ink"),
        )
