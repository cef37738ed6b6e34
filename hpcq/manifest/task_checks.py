"""Checks of the names of tasks, and of the user's definitions."""

from __future__ import annotations

from collections.abc import Iterator

from hpcq.catalog.make_task_index import NO_ENVIRONMENT, NoEnvironmentError, ensure_definitions_index
from hpcq.catalog.task_index import definitions_file, index_file, indexed_names
from hpcq.catalog.tasks import find_task, known_task, task_names
from hpcq.core.errors import UserInputError
from hpcq.core.work_records import PANEL_TASK
from hpcq.manifest.context import Context
from hpcq.manifest.error_messages import Problem, did_you_mean, nearest_names
from hpcq.manifest.fs_access import is_folder
from hpcq.manifest.schema import Manifest
from hpcq.manifest.task_names import definitions_digest, include_folders

_MAX_LENGTH_DIFFERENCE = 6
"""Maximum difference in length, in characters, between an unknown name and a name that is suggested for it."""


def check_definitions(context: Context) -> Iterator[Problem]:
    """Find missing folders, invalid definitions, names that lm-eval also has, and functions without trust_code."""
    manifest = context.manifest
    folders = include_folders(manifest)
    for position, folder in enumerate(folders):
        if not is_folder(folder):
            text = manifest.tasks.include[position]
            yield ("tasks", "include", position), f"'{text}' is not a folder. Give a folder with YAML files of tasks."
            return
    digest = definitions_digest(manifest)
    if digest is None:
        return
    try:
        path = ensure_definitions_index(list(folders), digest)
    except (UserInputError, NoEnvironmentError) as error:
        yield ("tasks", "include"), str(error)
        return
    builtin = set(indexed_names(index_file()) or ())
    for name in indexed_names(path) or ():
        info = known_task(name, digest)
        if name == PANEL_TASK:
            yield (
                ("tasks", "include"),
                f"'{name}' is the name of the fidelity panel: give your definition another one.",
            )
        elif name in builtin or find_task(name):
            yield ("tasks", "include"), f"'{name}' is also a name in lm-eval: give your definition another one."
        elif info and info.has_code and not manifest.tasks.trust_code:
            yield (
                ("tasks", "trust_code"),
                (
                    f"'{name}' in tasks.include calls Python functions (!function), which run on the nodes and on this"
                    " machine as you: read them, then set trust_code = true."
                ),
            )
            return


def check_names(context: Context) -> Iterator[Problem]:
    """Find names that are unknown, that hpcq cannot evaluate, or that have a member in common."""
    owners: dict[str, str] = {}
    for task in context.tasks:
        key_path, name, members = task.key_path, task.name, task.members
        if task.info is None:
            yield key_path, _unknown(name, context.manifest)
            continue
        if task.info.problem:
            yield key_path, f"'{name}' cannot be evaluated: {task.info.problem}."
            continue
        if task.info.runs_code and not context.manifest.tasks.allow_code_execution:
            fix = "set tasks.allow_code_execution = true, or remove the task"
            yield key_path, f"'{name}' runs code that the models write, in a sandbox of the merge: {fix}."
            continue
        twice = next((leaf for leaf in members if owners.get(leaf, name) != name), None)
        if twice is not None:
            yield key_path, f"'{name}' and '{owners[twice]}' both contain '{twice}': name only one of them."
        owners |= dict.fromkeys(members, name)


def _unknown(name: str, manifest: Manifest) -> str:
    digest = definitions_digest(manifest)
    if indexed_names(index_file()) is None:
        return (
            f"unknown task '{name}': it is not in hpcq's catalog, and lm-eval's other tasks are not known here,"
            f" {NO_ENVIRONMENT}{did_you_mean(name, task_names())}"
        )
    own = (indexed_names(definitions_file(digest)) or ()) if digest else ()
    known = (*own, *task_names(), *(indexed_names(index_file()) or ()))
    # difflib needs seconds for 15,000 names.
    known = tuple(one for one in dict.fromkeys(known) if one[:2].lower() == name[:2].lower()) or task_names()
    known = tuple(one for one in known if abs(len(one) - len(name)) <= _MAX_LENGTH_DIFFERENCE) or known[:1000]
    first = did_you_mean(name, known)
    near = [other for other in nearest_names(name, known) if f"'{other}'" not in first]
    hint = f" Similar names are {', '.join(near)}." if near else ""
    return f"unknown task '{name}': lm-eval has no task, group or tag of this name.{first}{hint}"
