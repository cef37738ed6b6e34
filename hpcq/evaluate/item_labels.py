"""Labels of multiple-choice items: lm-eval (0.4.13) counts an item whose label is none of its choices as wrong.

Data sets hide the labels of their test splits: -1, or an empty text. Every model would have a score of zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpcq.verify.marks import TaskFacts

_MULTIPLE_CHOICE = "multiple_choice"


def count_unlabeled_items(leaf: Any) -> TaskFacts:
    """Return the number of items of an lm-eval task with choices, and of those whose label is none of the choices.

    Args:
        leaf: lm-eval's Task, whose Instances are built. Tasks of other types, and those that score answers with a
            function of their own, have no such items.
    """
    if leaf.OUTPUT_TYPE != _MULTIPLE_CHOICE or callable(leaf.config.process_results):
        return TaskFacts()
    documents = {instance.doc_id: instance.doc for instance in leaf.instances}
    unlabeled = sum(not _has_label(leaf, document) for document in documents.values())
    return TaskFacts(items_with_choices=len(documents), unlabeled_items=unlabeled)


def _has_label(leaf: Any, document: Any) -> bool:
    choices = leaf.doc_to_choice(document)
    label = leaf.doc_to_text(document) if leaf.multiple_input else leaf.doc_to_target(document)
    labels = label if isinstance(label, list) else [label]
    return bool(labels) and all(_is_choice(one, choices) for one in labels)


def _is_choice(label: Any, choices: Sequence[str]) -> bool:
    """Whether a label is one of the choices, or the index of one."""
    return label in (choices if isinstance(label, str) else range(len(choices)))
