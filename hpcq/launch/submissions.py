"""Records of the submissions to Slurm, and recovery of a record that is missing.

A submission is recorded right after sbatch. If the submitting process dies in between, the record is recovered from
the queue: the job's comment names the submission's folder, which contains its specification, written before sbatch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hpcq.core.attempts import utc_now
from hpcq.core.files import list_folder, read_regular, write_text
from hpcq.core.frozen import dataclass
from hpcq.core.paths import RunLayout
from hpcq.core.work_records import UnitKind
from hpcq.launch.array_spec import ArraySpec, Submission, UnitSpec
from hpcq.launch.recovery.retry_policy import RetryPolicy
from hpcq.slurm.jobs import SlurmJob
from hpcq.slurm.squeue import job_name

_SPEC_FILE = "submission.json"

_SOME_FOLDER = re.compile(r"/[\w.-]+\.\d+\.\w{8}(?:\s|$)")
"""Folder of a submission, also of a run of the same name elsewhere."""

_RECENT, _CLOCK_DIFFERENCE = timedelta(minutes=10), timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class SubmissionSpec:
    """Specification of a submission, for the jobs themselves: `submission.json` in the submission's folder.

    Attributes:
        units: Unit ids by array index.
        exclude: Nodes that the profile excludes.
        memory_gib: Host memory requested from Slurm. None: Slurm's default.
        memory_option: Option of sbatch that requests it.
        cpus_per_unit: CPUs per unit and node.
        cluster: Cluster to which the array is submitted. None: that of the machine on which hpcq runs.
        home: ClusterName of that cluster. None: not known.
    """

    array: str
    part: int
    units: tuple[str, ...]
    layout: RunLayout
    kind: UnitKind
    exclude: str | None
    memory_gib: float | None
    retries: RetryPolicy
    memory_option: str = "mem"
    cpus_per_unit: int = 1
    cluster: str | None = None
    home: str | None = None


def write_spec(
    folder: Path,
    layout: RunLayout,
    array: ArraySpec,
    part: int,
    units: Sequence[UnitSpec],
    *,
    cluster: str | None = None,
    home: str | None = None,
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
        memory_option=array.memory_option,
        cpus_per_unit=array.cpus_per_unit,
        cluster=cluster,
        home=home,
    )
    write_text(folder / _SPEC_FILE, json.dumps(asdict(spec), default=str) + "\n")
    return spec


def read_spec(folder: Path) -> SubmissionSpec:
    """Read the specification that `write_spec` wrote."""
    content = json.loads(read_regular(folder / _SPEC_FILE))
    layout = content["layout"]
    return SubmissionSpec(
        array=content["array"],
        part=content["part"],
        units=tuple(content["units"]),
        layout=RunLayout(
            name=layout["name"],
            runs=Path(layout["runs"]),
            checkpoints=Path(layout["checkpoints"]),
            logs=Path(layout["logs"]),
        ),
        kind=UnitKind(content["kind"]),
        exclude=content["exclude"],
        memory_gib=content["memory_gib"],
        retries=RetryPolicy.from_json(content["retries"]),
        memory_option=content.get("memory_option", "mem"),
        cpus_per_unit=content.get("cpus_per_unit", 1),
        cluster=content.get("cluster"),
        home=content.get("home"),
    )


def record_submission(
    layout: RunLayout, folder: Path, spec: SubmissionSpec, job_id: str, *, cluster: str | None = None
) -> Submission:
    """Record that Slurm accepted the submission in `folder` as `job_id`, on `cluster` if sbatch has named one."""
    number = 1 + max((one.number for one in read_submissions(layout)), default=0)
    submission = _accepted(folder, spec, job_id, number, cluster=cluster or spec.cluster)
    _write(layout, submission)
    return submission


def _write(layout: RunLayout, submission: Submission) -> None:
    write_text(record_path(layout, submission), json.dumps(asdict(submission), indent=1) + "\n")


def record_path(layout: RunLayout, submission: Submission) -> Path:
    """Return the path of the record."""
    return layout.submissions / f"{submission.array}.{submission.job_id}.json"


def _accepted(folder: Path, spec: SubmissionSpec, job_id: str, number: int, *, cluster: str | None) -> Submission:
    return Submission(
        array=spec.array,
        part=spec.part,
        job_id=job_id,
        units=spec.units,
        folder=str(folder),
        time=utc_now(),
        number=number,
        cluster=cluster,
        home=spec.home,
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


def is_recent(submission: Submission) -> bool:
    """Whether the submission was recorded in the last minutes, also if the clock of its host differs by as much."""
    age = datetime.now(UTC) - datetime.fromisoformat(submission.time)
    return age < _RECENT + _CLOCK_DIFFERENCE


def was_submitted(layout: RunLayout) -> bool:
    """Whether anything of the run was submitted, or was about to be."""
    return bool(_records(layout)) or any((folder / _SPEC_FILE).exists() for folder in list_folder(layout.launcher_logs))


def clusters(layout: RunLayout, recorded: Sequence[Submission]) -> set[str | None]:
    """Return the clusters of the run's submissions: of those in `recorded`, and of those that have no record."""
    known = {Path(one.folder) for one in recorded}
    started = [one for one in list_folder(layout.launcher_logs) if one not in known and (one / _SPEC_FILE).is_file()]
    return {one.cluster for one in recorded} | {read_spec(folder).cluster for folder in started}


def submission_folder(layout: RunLayout, comment: str) -> Path | None:
    """Return the folder of the run's submission that a job's comment names; None if it names none.

    Before and after it, the comment may have text of the site (`slurm.comment`, a submit plugin).
    """
    found = re.search(rf"{re.escape(str(layout.launcher_logs))}/([^\s/]+)(?:\s|$)", comment)
    return layout.launcher_logs / found[1] if found else None


def recover_unrecorded(
    layout: RunLayout, queue: Mapping[str, SlurmJob], *, cluster: str | None = None, may_write: bool = True
) -> list[Submission]:
    """Record the submissions of this run that are in the queue but have no record, and return them.

    Args:
        layout: Paths of the run.
        queue: The run's jobs in Slurm, by id.
        cluster: The cluster of this queue.
        may_write: Write the records; otherwise, return the submissions only.
    """
    last = max((one.number for one in read_submissions(layout)), default=0)
    found: list[Submission] = []
    for job_id, folder in unrecorded_jobs(layout, queue, cluster):
        found.append(_accepted(folder, read_spec(folder), job_id, last + len(found) + 1, cluster=cluster))
        if may_write:
            _write(layout, found[-1])
    return found


def unrecorded_jobs(layout: RunLayout, queue: Mapping[str, SlurmJob], cluster: str | None) -> list[tuple[str, Path]]:
    """Return the id and the folder of each submission of this run that is in the queue but has no record.

    The job's comment names the folder. A site may have replaced the comment: then the job's name decides, which is that
    of the array, if exactly one unrecorded job and one unrecorded folder have it.
    """
    known = read_submissions(layout)
    recorded = {one.job_id for one in known if one.cluster == cluster}
    jobs = {name.partition("_")[0]: job for name, job in queue.items() if not job.was_rejected}
    found, unnamed = [], list[tuple[str, SlurmJob]]()
    for job_id, job in sorted(jobs.items()):
        folder = submission_folder(layout, job.comment)
        if job_id in recorded or (_SOME_FOLDER.search(job.comment) and not folder):
            continue
        if folder and (folder / _SPEC_FILE).is_file():
            found.append((job_id, folder))
        elif not folder:
            unnamed.append((job_id, job))
    if not unnamed:
        return found
    taken = {one.folder for one in known} | {str(folder) for _, folder in found}
    folders = (one for one in list_folder(layout.launcher_logs) if str(one) not in taken)
    names = {one: _job_name(layout, read_spec(one)) for one in folders if (one / _SPEC_FILE).is_file()}
    for job_id, job in unnamed:
        candidates = [folder for folder, name in names.items() if name == job.name]
        if len(candidates) == 1 and sum(other.name == job.name for _, other in unnamed) == 1:
            found.append((job_id, candidates[0]))
    return found


def _job_name(layout: RunLayout, spec: SubmissionSpec) -> str:
    return job_name(layout.name, spec.array, spec.part)


def _records(layout: RunLayout) -> list[Path]:
    return [path for path in list_folder(layout.submissions) if path.suffix == ".json"]
