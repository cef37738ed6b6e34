"""Documents of a split that a definition processes (`process_docs`), as lm-eval gets them from the cache of datasets.

lm-eval (0.4.13) processes a split several times: for few-shot examples, for a test of the first document, for the
requests, and for the scores. The cache of datasets (5.2) keeps the first result for the next times and the next
processes, so definitions that shuffle choices (GPQA's) shuffle them once. hpcq switches this cache off, because with it
the order depends on what a node has computed before. The results are kept in memory instead.

A definition with a random generator of its own (gpqa/n_shot) has a new key in the cache of datasets after each use, so
lm-eval shuffles again at each of these steps in its first run, and scores other choices than it has asked for. From the
second run on, each step finds the result of the first use in the cache. hpcq gives the results of the second run.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask

Process = Callable[..., Any]


@contextlib.contextmanager
def splits_processed_once() -> Iterator[None]:
    """Let every task that is constructed in the block process each split once. Its object keeps the results."""
    download = ConfigurableTask.download

    @wraps(download)
    def load(task: Any, *arguments: Any, **options: Any) -> None:
        download(task, *arguments, **options)
        results: dict[tuple[Process, int], tuple[Any, Any]] = {}
        for config in (task.config, task.fewshot_cfg):
            if config.process_docs is not None:
                config.process_docs = _once(config.process_docs, results)

    # The constructor calls `download` after it has read the definition, and before it processes documents (0.4.13).
    ConfigurableTask.download = load
    try:
        yield
    finally:
        ConfigurableTask.download = download


def _once(process: Process, results: dict[tuple[Process, int], tuple[Any, Any]]) -> Process:
    """Return `process`, which processes a data set only the first time. `results` also keep it: its id stays unique."""

    @wraps(process)
    def processed(split: Any, *arguments: Any) -> Any:
        if arguments or not isinstance(split, datasets.Dataset):  # datasets does not cache streams
            return process(split, *arguments)
        key = (process, id(split))
        if key not in results:
            with _unused_generators(process):
                results[key] = (split, process(split))
        return results[key][1]

    return processed


_first_states: dict[random.Random, Any] = {}
"""State of the generators of definitions before their first use. Their modules are loaded once per process."""


@contextlib.contextmanager
def _unused_generators(process: Process) -> Iterator[None]:
    """Set the generators in the module of `process` to their first state: tasks do not depend on those before them."""
    names = getattr(process, "__globals__", {})
    generators = [value for value in names.values() if isinstance(value, random.Random)]
    for generator in generators:
        generator.setstate(_first_states.setdefault(generator, generator.getstate()))
    yield
    for generator in generators:
        generator.setstate(_first_states[generator])
