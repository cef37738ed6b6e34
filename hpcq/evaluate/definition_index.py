"""lm-eval's index of the definitions that one task needs: its own file, and those of a group's members.

Indexing all definitions of lm-eval takes a minute. Of a task in the catalog, only the folder is indexed; of others,
only the files that `hpcq.catalog.task_index` names.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import lm_eval.tasks
from lm_eval.tasks._index import Entry, Kind, TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml

from hpcq.catalog.task_index import index_file, indexed_names
from hpcq.catalog.tasks import find_task, indexed_task
from hpcq.core.errors import UserInputError
from hpcq.core.task_definitions import read_folders
from hpcq.core.work_records import Task
from hpcq.evaluate.user_definitions import read_definitions

DEFINITIONS = Path(lm_eval.tasks.__file__).parent

_LOG = logging.getLogger(__name__)


def definition_index(task: Task) -> dict[str, Entry]:
    """Return lm-eval's entries that the construction of `task` needs, by name.

    Raises:
        UserInputError: lm-eval has no task of this name.
        SetupError: The user's definitions have changed since the plan was made.
    """
    if task.definitions:
        own = read_definitions(read_folders(task))
        return {**_lm_eval_entries(foreign_members(own)), **own}
    row = find_task(task.name)
    if row is not None and row.folder:
        return dict(TaskIndex.build([DEFINITIONS / row.folder]))
    found = _lm_eval_entries([task.name])
    if task.name not in found:
        raise UserInputError(f"tasks.use: lm-eval has no task {task.name!r}: correct the name.")
    return found


def leaf_names(name: str, index: Mapping[str, Entry]) -> dict[str, str]:
    """Return the tasks of which `name` consists, each with the path of its definition ('': unknown)."""
    entry = index.get(name)
    if entry is None or entry.kind not in (Kind.GROUP, Kind.TAG):
        return {name: str(entry.yaml_path) if entry else ""}
    members = sorted(entry.tags) if entry.kind is Kind.TAG else (entry.cfg or {}).get("task") or []
    found: dict[str, str] = {}
    for member in members:
        named = member.get("task") or member.get("group") if isinstance(member, dict) else member
        if isinstance(named, str):
            found |= leaf_names(named, index)
    return found


def foreign_members(own: Mapping[str, Entry]) -> list[str]:
    """Return the members of a user's groups that the user does not define. They must be names in lm-eval."""
    return list(dict.fromkeys(leaf for name in own for leaf in leaf_names(name, own) if leaf not in own))


def _lm_eval_entries(names: Sequence[str]) -> dict[str, Entry]:
    """Return the entries of names in lm-eval and of their members; empty if lm-eval does not have one of the names."""
    known = indexed_names(index_file())
    if known is not None and not set(names) <= set(known):
        return {}
    described = [indexed_task(name) for name in names]
    paths = dict.fromkeys(DEFINITIONS / file for one in described if one for file in one.definitions)
    if not all(described) or not all(path.is_file() for path in paths):
        _LOG.info("The index of lm-eval's tasks is not on this node: all definitions are read.")
        return _all_definitions()
    found: dict[str, Entry] = {}
    for path in paths:
        TaskIndex.process_cfg(load_yaml(path, resolve_func=False), path, found)
    return found


@lru_cache(maxsize=1)
def _all_definitions() -> dict[str, Entry]:
    return dict(lm_eval.tasks.TaskManager().task_index)
