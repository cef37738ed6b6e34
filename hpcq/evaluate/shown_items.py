"""Items whose prompt shows the item itself, with its answer, among the few-shot examples.

lm-eval (0.4.13) leaves an item out of its own examples only if both come from the same split. A data set may have the
item in two splits, or twice in one.
"""

from __future__ import annotations

from typing import Any

from hpcq.verify.marks import TaskFacts

_MIN_CHARACTERS = 20
"""Minimum length of a question; shorter ones, such as '2 + 2 =', can be part of another example."""


def count_shown_items(leaf: Any) -> TaskFacts:
    """Return the number of items of an lm-eval task with few-shot examples, and of those whose prompt shows the item.

    Args:
        leaf: lm-eval's Task, whose Instances are built. Items with a question of fewer than 20 characters, or with one
            that is not a string (winogrande), are not counted.
    """
    if not leaf.get_config("num_fewshot"):
        return TaskFacts()
    items = shown = 0
    first = {instance.doc_id: instance for instance in reversed(leaf.instances)}
    for instance in first.values():
        question, prompt = leaf.doc_to_text(instance.doc), instance.args[0]
        if isinstance(question, str) and isinstance(prompt, str) and len(question.strip()) >= _MIN_CHARACTERS:
            items += 1
            shown += prompt.count(question.strip()) > 1
    return TaskFacts(items=items, shown_items=shown)
