"""Items of benchmarks that share a long sequence of words with the calibration text.

A quantizer that was calibrated with an item has seen its text, so the item's score can be too good. As for the training
data of GPT-3 (arXiv 2005.14165, appendix C), an item overlaps if 13 consecutive words of it are in the text, in lower
case and without punctuation. Items without 13 consecutive words are not compared.

Only the passages that the calibration can read are searched, so memory is bounded: 8 bytes per word of at most
samples x sequence_length x 6 characters. Sequences are compared by 64-bit numbers; two different ones have the same
number with a probability below one in a billion for 10 million words and 10 thousand items.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.work_records import Calibration
from hpcq.evaluate.panel_windows import reserved_passages
from hpcq.verify.marks import TaskFacts

WORDS = 13
"""Length of a shared sequence (arXiv 2005.14165, appendix C)."""

_WORD = re.compile(r"\w+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""An odd number: the number of a sequence is a polynomial of its words' numbers, modulo 2**64."""
_LOG = logging.getLogger(__name__)

_Numbers = npt.NDArray[np.uint64]


def overlap_counts(calibration: Calibration, leaves: dict[str, Any]) -> dict[str, TaskFacts]:
    """Return, by task, the number of items that were compared, and of those that overlap; empty without the text.

    Args:
        calibration: The calibration set.
        leaves: lm-eval's Task objects by name, whose Instances are built.
    """
    try:
        known = _numbers_of_text(calibration)
    except (SetupError, UserInputError) as error:
        _LOG.warning("Items were not compared with the calibration text: %s", error)
        return {}
    return {name: _count(leaf, known) for name, leaf in leaves.items()} if len(known) else {}


def _count(leaf: Any, known: _Numbers) -> TaskFacts:
    documents = {instance.doc_id: instance.doc for instance in leaf.instances}
    compared = overlapping = 0
    for document in documents.values():
        numbers = np.concatenate([np.empty(0, np.uint64), *map(sequence_numbers, _strings(document))])
        if len(numbers):
            compared += 1
            places = np.searchsorted(known, numbers).clip(max=len(known) - 1)
            overlapping += bool((known[places] == numbers).any())
    return TaskFacts(compared_items=compared, calibration_items=overlapping)


def _strings(value: Any) -> Iterator[str]:
    """Yield all strings of an item: question, choices, answers."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _strings(part)


@lru_cache(maxsize=2)
def _numbers_of_text(calibration: Calibration) -> _Numbers:
    """Return the numbers of all sequences of words in the passages that the calibration can read, sorted."""
    parts = [np.empty(0, np.uint64)]
    for passage in reserved_passages(calibration):
        texts = [passage] if isinstance(passage, str) else [message["content"] for message in passage]
        parts += map(sequence_numbers, texts)
    return np.unique(np.concatenate(parts))


def sequence_numbers(text: str) -> _Numbers:
    """Return a number for each sequence of `WORDS` words of a text, in its order."""
    words = np.fromiter((_number(word) for word in _WORD.findall(text.lower())), dtype=np.uint64)
    count = len(words) - WORDS + 1
    if count < 1:
        return np.empty(0, np.uint64)
    total = np.zeros(count, np.uint64)
    for position in range(WORDS):
        total = total * _FACTOR + words[position : position + count]
    return total


@lru_cache(maxsize=2**17)
def _number(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little")
