"""Tables of the page: sortable and filterable by the script, complete without it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hpcq.core.frozen import dataclass
from hpcq.report.page.markup import NOTHING, Content, Html, join, tag
from hpcq.report.table import Table

MAX_LINES = 2000
"""Lines of a table of text cells: a page stays below 5 MB."""


@dataclass(frozen=True, kw_only=True)
class Heading:
    """Heading of a column.

    Attributes:
        name: Text of the heading.
        is_number: The cells are aligned to the right.
        is_choice: The script offers the different cells of the column as a filter.
    """

    name: str
    is_number: bool = False
    is_choice: bool = False


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell.

    Attributes:
        content: What is shown.
        value: What the column is sorted by; None: the text.
    """

    content: Content
    value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Record:
    """A row of a table.

    Attributes:
        cells: One per column: a text or a `Cell`.
        id: Target of links; None: there are none.
    """

    cells: Sequence[str | Cell]
    id: str | None = None


def data_table(headings: Sequence[Heading], records: Iterable[Record], *, label: str, can_filter: bool = False) -> Html:
    """Return a table that can be scrolled and sorted.

    Args:
        headings: One per column; the cells of the first one are the names of the rows.
        records: The rows.
        label: Name of the table for screen readers.
        can_filter: Whether the script offers a search field, and lists of choices.
    """
    head = tag("tr", *(_heading(heading) for heading in headings))
    body = join((_row(headings, record) for record in records), "\n")
    table = tag(
        "table",
        tag("thead", head),
        tag("tbody", body),
        class_="sortable",
        data_filter=label if can_filter else None,
    )
    return scrollable(table, label)


def _heading(heading: Heading) -> Html:
    name = in_two_parts(heading.name) if heading.is_number else heading.name
    return tag("th", name, scope="col", class_="number" if heading.is_number else None, data_choice=heading.is_choice)


def in_two_parts(text: str) -> Content:
    """Return a number that a line break may separate from what follows in parentheses, and only there."""
    first, blank, second = text.partition(" (")
    if not blank:
        return text
    return join((tag("span", first), tag("span", f"({second}")), " ")


def _row(headings: Sequence[Heading], record: Record) -> Html:
    cells = []
    for at, (heading, given) in enumerate(zip(headings, record.cells, strict=True)):
        cell = given if isinstance(given, Cell) else Cell(content=given)
        attributes = {
            "class_": "number" if heading.is_number else None,
            "data_value": None if cell.value is None else repr(float(cell.value)),
        }
        is_text = heading.is_number and isinstance(cell.content, str)
        content = in_two_parts(str(cell.content)) if is_text else cell.content
        cells.append(tag("td", content, **attributes) if at else tag("th", cell.content, scope="row"))
    return tag("tr", *cells, id=record.id)


def scrollable(table: Html, label: str) -> Html:
    """Return the table in a box that scrolls sideways, also by the keyboard."""
    return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=label)


def text_table(table: Table) -> Html:
    """Return a table of text cells, with its notes."""
    aligned = [None if at < table.left_columns else "number" for at in range(len(table.columns))]
    head = tag(
        "tr", *(tag("th", _aligned(name, how), class_=how) for name, how in zip(table.headings, aligned, strict=True))
    )
    lines = [
        tag(
            "tr",
            tag("th", line[0], scope="row"),
            *(tag("td", _aligned(cell, how), class_=how) for cell, how in zip(line[1:], aligned[1:], strict=True)),
        )
        for line in table.lines[:MAX_LINES]
    ]
    more = len(table.lines) - len(lines)
    body = tag("table", tag("thead", head), tag("tbody", join(lines, "\n")))
    notes = [*([f"{more} more lines: see hpcq report --format json."] if more > 0 else []), *table.notes]
    return join((scrollable(body, table.title), bullet_list(notes, class_="notes")))


def _aligned(text: str, how: str | None) -> Content:
    return text if how is None else in_two_parts(text)


def bullet_list(sentences: Sequence[str], *, class_: str | None = None) -> Html:
    """Return a list; nothing without sentences."""
    if not sentences:
        return NOTHING
    return tag("ul", *(tag("li", sentence) for sentence in sentences), class_=class_)
