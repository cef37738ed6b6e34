"""Records of the submissions to Slurm, and recovery of a record that is missing.

A submission is recorded right after sbatch. If the submitting process dies in between, the record is recovered from
the queue: the job's comment names the submission's folder, which contains its specification, written before sbatch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hpcq.core.attempts import utc_now
from hpcq.core.files import list_folder, read_regular, write_text
from hpcq.core.paths import RunLayout
from hpcq.core.work_records import UnitKind
from hpcq.launch.array_spec import ArraySpec, Submission, UnitSpec
from hpcq.launch.recovery.retry_policy import RetryPolicy
from hpcq.slurm.jobs import SlurmJob

_SPEC_FILE = "submission.json"


@dataclass(frozen=True, kw_only=True)
class SubmissionSpec:
    """Specification of a submission, for the jobs themselves: `submission.json` in the submission's folder.

    Attributes:
        units: Unit ids by array index.
        exclude: Nodes that the profile excludes.
        memory_gib: Host memory requested from Slurm. None: Slurm's default.
    """

    array: str
    part: int
    units: tuple[str, ...]
    layout: RunLayout
    kind: UnitKind
    exclude: str | None
    memory_gib: float | None
    retries: RetryPolicy


def write_spec(
    folder: Path, layout: RunLayout, array: ArraySpec, part: int, units: Sequence[UnitSpec]
) -> SubmissionSpec:
    """Write the specification of the next submission to `folder` and return it."""
    spec = SubmissionSpec(
        array=array.name,
        part=part,
        units=tuple(unit.unit_id for unit in units),
        layout=layout,
        kind=array.kind,
        exclude=array.exclude,
        memory_gib=array.memory_gib,
        retries=array.retries,
    )
    write_text(folder / _SPEC_FILE, json.dumps(asdict(spec), default=str) + "\n")
    return spec


def read_spec(folder: Path) -> SubmissionSpec:
    """Read the specification that `write_spec` wrote."""
    content = json.loads(read_regular(folder / _SPEC_FILE))
    name = content["layout"].pop("name")
    return SubmissionSpec(
        array=content["array"],
        part=content["part"],
        units=tuple(content["units"]),
        layout=RunLayout(name=name, **{key: Path(value) for key, value in content["layout"].items()}),
        kind=UnitKind(content["kind"]),
        exclude=content["exclude"],
        memory_gib=content["memory_gib"],
        retries=RetryPolicy.from_json(content["retries"]),
    )


def record_submission(layout: RunLayout, folder: Path, spec: SubmissionSpec, job_id: str) -> Submission:
    """Record that Slurm accepted the submission in `folder` as `job_id`."""
    number = 1 + max((one.number for one in read_submissions(layout)), default=0)
    submission = _accepted(folder, spec, job_id, number)
    _write(layout, submission)
    return submission


def _write(layout: RunLayout, submission: Submission) -> None:
    path = layout.submissions / f"{submission.array}.{submission.job_id}.json"
    write_text(path, json.dumps(asdict(submission), indent=1) + "\n")


def _accepted(folder: Path, spec: SubmissionSpec, job_id: str, number: int) -> Submission:
    return Submission(
        array=spec.array,
        part=spec.part,
        job_id=job_id,
        units=spec.units,
        folder=str(folder),
        time=utc_now(),
        number=number,
    )


def read_submissions(layout: RunLayout) -> list[Submission]:
    """Return all submissions of the run, oldest first. Unknown fields (of later versions) are ignored."""
    known = set(Submission.__dataclass_fields__)
    found = []
    for path in _records(layout):
        content = json.loads(read_regular(path))
        content["units"] = tuple(content["units"])
        found.append(Submission(**{key: value for key, value in content.items() if key in known}))
    return sorted(found, key=lambda one: (one.number, one.time, one.array, one.part))


def was_submitted(layout: RunLayout) -> bool:
    """Whether anything of the run was submitted, or was about to be."""
    return bool(_records(layout)) or any((folder / _SPEC_FILE).exists() for folder in list_folder(layout.launcher_logs))


def recover_unrecorded(layout: RunLayout, queue: Mapping[str, SlurmJob], *, may_write: bool = True) -> list[Submission]:
    """Record the submissions of this run that are in the queue but have no record, and return them.

    Args:
        layout: Paths of the run.
        queue: The run's jobs in Slurm, by id.
        may_write: Write the records; otherwise, return the submissions only.
    """
    known = read_submissions(layout)
    recorded, last = {one.job_id for one in known}, max((one.number for one in known), default=0)
    found: list[Submission] = []
    for job_id, folder in sorted({(job_id.partition("_")[0], Path(job.comment)) for job_id, job in queue.items()}):
        if job_id not in recorded and folder.parent == layout.launcher_logs and (folder / _SPEC_FILE).is_file():
            found.append(_accepted(folder, read_spec(folder), job_id, last + len(found) + 1))
            if may_write:
                _write(layout, found[-1])
    return found


def _records(layout: RunLayout) -> list[Path]:
    return [path for path in list_folder(layout.submissions) if path.suffix == ".json"]
