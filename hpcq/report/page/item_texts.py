"""Items that changed, with the responses of both sides."""

from __future__ import annotations

from collections.abc import Sequence

from hpcq.report.number_formats import MISSING
from hpcq.report.page.changed_items import Answer, ChangedItem, ChangedItems
from hpcq.report.page.markup import Html, answer_text, escape, join, shortened, tag
from hpcq.report.page.sections import paragraph

PAGE_BYTES = 1_500_000
"""Size of all changed items in a page, which stays below 5 MB."""
MAX_ANSWER_BYTES = 2000
_MIN_CHARACTERS = 40
_DIGITS = 12
"""Digits of a digest that are shown."""


def changed_list(changed: ChangedItems, *, pairs: int) -> Html:
    """Return the list of the items.

    Args:
        changed: The items.
        pairs: Lists in the page, which share `PAGE_BYTES`.
    """
    budget = PAGE_BYTES // pairs
    items: list[Html] = []
    has_text = any(side and side.text is not None for item in changed.shown for side in (item.baseline, item.own))
    for item in changed.shown:
        source = _item(item)
        budget -= len(source.source.encode())
        if budget < 0:
            break
        items.append(source)
    total = changed.lower + changed.higher
    shown = f"{len(items)} of {total} items." if len(items) < total else ""
    return join((paragraph(shown) if shown else None, tag("ol", *items, class_="items" if has_text else "items grid")))


def _item(item: ChangedItem) -> Html:
    number = f"{item.task} {item.doc_id}"
    title = tag("h4", tag("bdi", number), f": {_value(item.baseline_value)} → {_value(item.value)}")
    digest = tag("small", f"request {item.digest[:_DIGITS]}")
    sides = (item.baseline, item.own)
    if any(side is not None and side.text is not None for side in sides):
        answers = tag("div", _text("unquantized", item.baseline), _text("variant", item.own), class_="pair")
    else:
        answers = _choices(item)
    return tag("li", title, digest, answers)


def _value(value: float) -> str:
    """Return a score of an item in words."""
    return {0.0: "wrong", 1.0: "right"}.get(value, f"{value:.3g}")


def _text(side: str, answer: Answer | None) -> Html:
    if answer is None or answer.text is None:
        return tag("figure", tag("figcaption", side), tag("p", "not stored"))
    text = excerpt(answer.text, MAX_ANSWER_BYTES)
    caption = f"{side}, {answer.length:,} bytes" if text != answer.text else side
    return tag(
        "figure", tag("figcaption", caption), tag("pre", answer_text(text), dir="auto") if text else tag("p", "empty")
    )


def excerpt(text: str, max_bytes: int) -> str:
    """Return both ends of `text`, short enough that their source has about `max_bytes`."""
    length = max_bytes
    found = shortened(text, length)
    while len(escape(found).encode()) > max_bytes and length > _MIN_CHARACTERS:
        length //= 2
        found = shortened(text, length)
    return found


def _choices(item: ChangedItem) -> Html:
    sides = [answer.loglikelihoods if answer else () for answer in (item.baseline, item.own)]
    count = max(map(len, sides))
    if not count:
        return paragraph("Responses are not stored.")
    head = tag("tr", *(tag("th", name, scope="col") for name in ("choice", "unquantized", "variant")))
    rows = [
        tag(
            "tr",
            tag("th", f"{at}{' (right)' if at == item.target else ''}", scope="row"),
            *(_cell(side, at) for side in sides),
            class_="target" if at == item.target else None,
        )
        for at in range(min(count, 2 * _DIGITS))
    ]
    return tag("table", tag("thead", head), tag("tbody", *rows), class_="choices")


def _cell(values: Sequence[float], at: int) -> Html:
    if at >= len(values):
        return tag("td", MISSING)
    text = f"{values[at]:.3f}".replace("-", "\N{MINUS SIGN}")
    return tag("td", tag("strong", text, " ▲") if values[at] == max(values) else text)
