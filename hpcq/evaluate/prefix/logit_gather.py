"""Readings: which log-probabilities are read from which row, so that each one that an ask needs is read once.

Knows the tree and the batches cut from it; must not know why they were cut so.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpcq.evaluate.prefix.batching import Batch, Span
from hpcq.evaluate.prefix.forward_pass import Pass, Readings, Row
from hpcq.evaluate.prefix.radix_tree import Tree


def readers(tree: Tree) -> list[list[int]]:
    """For each node the asks of its leaves that need logits within its path: the only ones that may read from it."""
    found = [list(node.asks) for node in tree.nodes]
    for number, node in enumerate(tree.nodes):
        for child in node.children:
            found[number] += [ask for ask in found[child] if tree.asks[ask].first < node.end]
    return found


def make_pass(tree: Tree, batch: Batch, reading: Sequence[Sequence[int]]) -> Pass:
    """The pass that computes `batch`; `reading` are the tree's readers."""
    readings, finished = _readings(tree, batch, reading)
    rows = tuple(_row(tree, span) for span in batch.spans)
    return Pass(rows=rows, readings=readings, finished=finished, drops=tuple(sorted(batch.drops)))


def _row(tree: Tree, span: Span) -> Row:
    tokens = tree.asks[tree.nodes[span.node].ask].tokens[span.start : span.end]
    return Row(tokens=tokens, start=span.start, parent=span.parent, keep=span.node if span.keeps else None)


def _readings(tree: Tree, batch: Batch, reading: Sequence[Sequence[int]]) -> tuple[Readings, tuple[int, ...]]:
    places: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    asks: list[int] = []
    counts: list[int] = []
    finished: list[int] = []
    width = batch.spans[0].tokens
    for row, span in enumerate(batch.spans):
        for number in reading[span.node]:
            ask = tree.asks[number]
            begin, end = max(ask.first, span.unread), min(ask.read, span.end)
            if begin >= end:
                continue
            places.append(np.arange(begin, end) + (row * width - span.start))
            targets.append(ask.tokens[begin + 1 : end + 1])
            asks.append(number)
            counts.append(end - begin)
            if end == ask.read:
                finished.append(number)
    nothing = np.empty(0, np.int64)
    unique, place = np.unique(np.concatenate([nothing, *places]), return_inverse=True)
    return (
        Readings(
            row=unique // width,
            column=unique % width,
            place=place.astype(np.int64),
            target=np.concatenate([nothing, *targets]),
            ask=np.repeat(np.array(asks, np.int64), np.array(counts, np.int64)),
        ),
        tuple(finished),
    )
