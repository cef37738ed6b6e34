"""Batch script of a submission, in submitit's format, and records of its units; the only user of its private methods.

submitit itself (1.5.4) writes a pickle per unit after sbatch has returned, because its name contains the job id. A user
who can replace a pickle can execute code in the job, and a job whose submission was interrupted waits for it forever.
Here a job reads a line of JSON, which is written before sbatch is called and checked when it is read
(`hpcq.core.json_records`).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcq.core.files import storage_errors, write_text
from hpcq.core.json_records import to_json
from hpcq.launch.job import RECORDS_NAME, UnitJob

SCRIPT_NAME = "submission.sh"


def write_records(folder: Path, jobs: Sequence[UnitJob]) -> None:
    """Write what the jobs of a submission read: one line per element."""
    write_text(folder / RECORDS_NAME, "".join(f"{to_json(job)}\n" for job in jobs))


def job_command(python: Sequence[str], folder: Path, index: int | None = None) -> list[str]:
    """Return the command, without its last argument if `index` is None, that runs an element of a submission."""
    command = [*python, "-u", "-m", "hpcq.launch.job", str(folder)]
    return command if index is None else [*command, str(index)]


def write_script(folder: Path, *, python: str, options: Mapping[str, Any], elements: int) -> Path:
    """Write the batch script of a submission and return its path.

    Args:
        folder: Folder of the submission.
        python: Interpreter of the jobs.
        options: submitit's parameters.
        elements: Number of elements; a single one is not an array.
    """
    # Imported here: submitit takes 0.1 s to import, and `status` and `cancel` do not need it.
    from submitit.slurm.slurm import SlurmExecutor

    executor = SlurmExecutor(folder=folder, python=shlex.quote(python))
    executor.update_parameters(**options)
    if elements > 1:
        executor.parameters["map_count"] = elements
    command = f"{shlex.join(job_command([python], folder))} ${{SLURM_ARRAY_TASK_ID:-0}}"
    script = folder / SCRIPT_NAME
    with storage_errors(folder):
        write_text(script, executor._make_submission_file_text(command, uid=""))  # noqa: SLF001
    return script
