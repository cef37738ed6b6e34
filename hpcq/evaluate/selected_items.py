"""Selection of items, applied to lm-eval's Task objects (0.4.13)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hpcq.core.errors import UserInputError
from hpcq.core.work_records import Task


def select_items(task: Task, leaves: Mapping[str, Any]) -> None:
    """Let each leaf evaluate only the selected documents, with their numbers in the data set.

    lm-eval's --samples numbers the selected documents from 0: responses would not say which document they answer.

    Args:
        task: The task.
        leaves: lm-eval's Task objects by name, without Instances.

    Raises:
        UserInputError: A document does not exist, or a leaf has none.
    """
    if task.items is None:
        return
    sizes = {name: len(leaf.eval_docs) for name, leaf in leaves.items()}
    own = f"tasks.options.{task.name}"
    key = f"{own}.items" if task.items.listed else f"{own}.sample.n" if task.items.is_of_task else "tasks.sample.n"
    if unknown := [name for name, _ in task.items.listed if name not in sizes]:
        raise UserInputError(f"{key}: {task.name} has no subtask '{unknown[0]}': correct the file.")
    chosen = task.items.choose(sizes)
    for name, numbers in chosen.items():
        if numbers and numbers[-1] >= sizes[name]:
            raise UserInputError(f"{key}: {name} has no item {numbers[-1]}: its items are 0 to {sizes[name] - 1}.")
        if not numbers:
            fix = "add one, or name the other subtasks in tasks.use" if task.items.listed else "increase it"
            raise UserInputError(f"{key}: no item of {name} is selected, so {task.name} would have no score: {fix}.")
        _restrict(leaves[name], numbers)


def _restrict(leaf: Any, numbers: list[int]) -> None:
    """Replace the iterator from which lm-eval builds Instances by one over the documents with these numbers."""
    documents = leaf.eval_docs

    def doc_iterator(**_: Any) -> Iterator[tuple[int, Any]]:
        return ((number, documents[number]) for number in numbers)

    leaf.doc_iterator = doc_iterator
