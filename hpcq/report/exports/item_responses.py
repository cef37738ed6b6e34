"""Responses and scores of the items of one task, in the form that lm-eval logs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from hpcq.core.frozen import dataclass
from hpcq.report.clean_text import valid_unicode
from hpcq.store import Columns, ResponseKind, TaskItems

UNFILTERED = "none"
"""lm-eval's filter that returns the first response to each request."""


@dataclass(frozen=True, kw_only=True)
class ItemResponses:
    """Responses to the requests of one item.

    Attributes:
        doc_id: Index of the item in its data set.
        digest: Digest of its first request.
        responses: By request and repeat: a text, or the log-likelihood and the greedy flag as texts.
    """

    doc_id: int
    digest: str
    responses: list[list[Any]]


class _Row(NamedTuple):
    """One response. `text` is UTF-8."""

    doc_id: int
    request_index: int
    kind: int
    loglikelihood: float
    is_greedy: int
    digest: bytes
    text: bytes


def item_responses(columns: Columns) -> Iterator[ItemResponses]:
    """Yield the items in the order of the data set. The rows are sorted by item, request and repeat."""
    parts = (columns.doc_id, columns.request_index, columns.kind, columns.loglikelihood, columns.is_greedy)
    rows = map(_Row, *(part.tolist() for part in parts), columns.digest.tolist(), columns.texts())
    for doc_id, own in itertools.groupby(rows, key=attrgetter("doc_id")):
        requests = [list(repeats) for _, repeats in itertools.groupby(own, key=attrgetter("request_index"))]
        yield ItemResponses(
            doc_id=doc_id,
            digest=requests[0][0].digest.decode(errors="replace"),
            responses=[[_logged(row) for row in repeats] for repeats in requests],
        )


def _logged(row: _Row) -> str | list[str]:
    """Return what lm-eval writes: texts, also of numbers, so that a column has one type."""
    if row.kind == ResponseKind.GENERATE_UNTIL:
        return _decoded(row.text)
    if row.kind == ResponseKind.LOGLIKELIHOOD_ROLLING:
        return str(row.loglikelihood)
    return [str(row.loglikelihood), str(bool(row.is_greedy))]


def _decoded(text: bytes) -> str:
    """Return a generated text. Half of a surrogate pair, and bytes that are not UTF-8, become U+FFFD."""
    try:
        return str(valid_unicode(text.decode("utf-8", "surrogatepass")))
    except UnicodeDecodeError:
        return text.decode("utf-8", "replace")


def item_metrics(table: TaskItems | None) -> dict[str, dict[str, dict[int, float]]]:
    """Return the values of items by filter and metric. Metrics with several results per item are left out."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    if table is None:
        return found
    for (metric, filter_), cells in table.values.items():
        own = found.setdefault(filter_, {})
        if np.all(cells[:, 1] == 1.0):
            own[metric] = dict(zip(table.doc_id.tolist(), cells[:, 0].tolist(), strict=True))
    return found
