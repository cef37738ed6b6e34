"""Batch script and pickles of a submission, in submitit's formats; the only user of its private methods (1.5.4).

submitit's own `submit_array` names the pickles by the job's id, after sbatch: a job whose submission was interrupted
in between would wait for them in vain. Here everything is written before sbatch, and a job finds its pickle by its
index.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcq.core.files import storage_errors, write_text

SCRIPT_NAME = "submission.sh"
_PICKLE_MODE = 0o600


def write_submission(
    folder: Path, *, python: str, options: Mapping[str, Any], calls: Sequence[Callable[[], None]]
) -> Path:
    """Write the batch script of an array that runs `calls`, and their pickles; return the path of the script.

    Args:
        folder: Folder of the submission.
        python: Interpreter of the jobs.
        options: submitit's parameters.
        calls: One call per element; a single one is not an array.
    """
    # Imported here: submitit takes 0.1 s to import, and `status` and `cancel` do not need it.
    from submitit.core.utils import DelayedSubmission
    from submitit.slurm.slurm import SlurmExecutor

    executor = SlurmExecutor(folder=folder, python=shlex.quote(python))
    executor.update_parameters(**{**options, "setup": [*options.get("setup", ()), *_link_lines(folder)]})
    if len(calls) > 1:
        executor.parameters["map_count"] = len(calls)
    with storage_errors(folder):
        for index, call in enumerate(calls):
            delayed = DelayedSubmission(call)
            delayed.set_timeout(options["time"], executor.max_num_timeout)
            pickle = folder / f"{index}.pkl"
            delayed.dump(pickle)
            pickle.chmod(_PICKLE_MODE)  # a default ACL may grant more (acl(5))
        script = folder / SCRIPT_NAME
        command = executor._submitit_command_str  # noqa: SLF001
        write_text(script, executor._make_submission_file_text(command, uid=""))  # noqa: SLF001
    return script


def _link_lines(folder: Path) -> list[str]:
    """Return the lines by which a job gives its pickle the name that submitit expects."""
    pickle = shlex.quote(str(folder)) + '/"${hpcq_job:-$SLURM_JOB_ID}_submitted.pkl"'
    return [
        "hpcq_job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}",
        f'ln -sfn "${{SLURM_ARRAY_TASK_ID:-0}}.pkl" {pickle}',
    ]
