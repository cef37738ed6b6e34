"""Lock file and plan in a run's folder: replaced by rename, the earlier ones kept as history.

A kill between two steps loses nothing. First the earlier lock file and plan are copied to `history/`. Then the lock
file is replaced, which defines the run: from then on, any command completes the change, also the resubmission in a job.
The plan is replaced last. While the file `.change` exists, the plan may be older than the lock file.
"""

from __future__ import annotations

import json
import shutil
import tomllib

from hpcq.core.errors import SetupError
from hpcq.core.files import committed_folder, list_folder, read_regular, write_text
from hpcq.core.paths import RunLayout
from hpcq.core.task_definitions import copy_definitions
from hpcq.manifest import lock_text
from hpcq.plan.arrays import make_arrays
from hpcq.plan.plan_json import plan_document
from hpcq.plan.schedule.simulator import simulate_estimates
from hpcq.plan.tool_versions import versions_by_environment
from hpcq.run.load import LoadedRun
from hpcq.run.merge_record import write_merge_unit
from hpcq.run.record import read_plan

OUTDATED_JOBS = "outdated_jobs"
"""Field of plan.json: jobs of an earlier plan whose units have other work now."""


def write_run(loaded: LoadedRun, outdated_jobs: frozenset[str] = frozenset()) -> None:
    """Write the run's lock file and `plan.json`.

    Args:
        loaded: The run.
        outdated_jobs: Pending and running jobs whose work is that of an earlier plan.
    """
    layout = loaded.layout
    for task in loaded.resolved.tasks:
        copy_definitions(task)
    text = lock_text(loaded.resolved, versions_by_environment(loaded.plan))
    if _keep_history(layout, text):
        write_text(layout.unfinished_change, "")
    write_text(layout.manifest_lock, text)
    write_merge_unit(layout, loaded.plan)
    arrays = make_arrays(loaded.plan.units, loaded.profile)
    document = plan_document(loaded.plan, arrays, {}, simulate_estimates(arrays, loaded.profile))
    document[OUTDATED_JOBS] = sorted(outdated_jobs)
    write_text(layout.plan, json.dumps(document, indent=1) + "\n")
    layout.unfinished_change.unlink(missing_ok=True)


def check_unchanged_run(loaded: LoadedRun) -> None:
    """Check that the run's plan is the one that was there when the manifest was loaded. The caller has the run's lock.

    Raises:
        SetupError: Another command has submitted another manifest in between.
    """
    address = (read_plan(loaded.layout) or {}).get("address")
    if address not in (None, loaded.earlier_address, loaded.plan.address):
        raise SetupError(
            f"{loaded.layout.folder}: another command has changed this run since this one read it. Nothing was"
            " submitted. Run the command again: it shows what it would change now."
        )


def _keep_history(layout: RunLayout, text: str) -> bool:
    """Copy the lock file and the plan to `history/`, unless the lock file stays or was copied before a kill.

    Returns:
        Whether the lock file will change.
    """
    try:
        earlier = read_regular(layout.manifest_lock)
    except FileNotFoundError:
        return False
    if _is_same(earlier, text.encode()):
        return False
    kept = [entry for entry in list_folder(layout.history) if entry.name.isdecimal()]
    last = kept[-1] / layout.manifest_lock.name if kept else None
    if last and last.is_file() and _is_same(read_regular(last), earlier):
        return True
    number = 1 + max((int(entry.name) for entry in kept), default=0)
    with committed_folder(layout.history / f"{number:04d}") as folder:
        for path in (layout.manifest_lock, layout.plan):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
    return True


def _is_same(lock: bytes, other: bytes) -> bool:
    """Return whether two lock files have the same keys and values, in any order."""
    try:
        return lock == other or tomllib.loads(lock.decode()) == tomllib.loads(other.decode())
    except ValueError:
        return False
