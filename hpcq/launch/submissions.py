"""The records of what was handed to Slurm, and how a record that was lost is found again.

A submission is written down right after sbatch. Should the submitting process die in between, the job's comment in
the queue names the submission's folder, where the order was written before sbatch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hpcq.core.attempts import now
from hpcq.core.files import listed, write_text
from hpcq.core.paths import RunLayout
from hpcq.core.work import Kind
from hpcq.launch.array_spec import ArrayOrder, Submission, UnitOrder
from hpcq.launch.recovery.retry_policy import Policy
from hpcq.slurm.squeue import Element, JobState

_ORDER = "order.json"


@dataclass(frozen=True, kw_only=True)
class Ordered:
    """What was ordered from a submission's folder, for the jobs themselves.

    units: ids, by element. exclude: nodes that the profile excludes. memory_gib: as asked of Slurm (None: its default).
    """

    array: str
    part: int
    units: tuple[str, ...]
    layout: RunLayout
    kind: Kind
    exclude: str | None
    memory_gib: float | None
    retries: Policy


def write_order(folder: Path, layout: RunLayout, order: ArrayOrder, part: int, units: Sequence[UnitOrder]) -> None:
    """Write down what is about to be submitted from `folder`."""
    content = {
        "array": order.name,
        "part": part,
        "units": [unit.unit_id for unit in units],
        "layout": asdict(layout),
        "kind": order.kind,
        "exclude": order.exclude,
        "memory_gib": order.memory_gib,
        "retries": order.retries.as_json(),
    }
    write_text(folder / _ORDER, json.dumps(content, default=str) + "\n")


def read_order(folder: Path) -> Ordered:
    """What `write_order` wrote."""
    content = json.loads((folder / _ORDER).read_text(encoding="utf-8"))
    name = content["layout"].pop("name")
    return Ordered(
        array=content["array"],
        part=content["part"],
        units=tuple(content["units"]),
        layout=RunLayout(name=name, **{key: Path(value) for key, value in content["layout"].items()}),
        kind=Kind(content["kind"]),
        exclude=content["exclude"],
        memory_gib=content["memory_gib"],
        retries=Policy.from_json(content["retries"]),
    )


def record(layout: RunLayout, folder: Path, job_id: str) -> Submission:
    """Write down that what was ordered from `folder` has become `job_id`."""
    order = json.loads((folder / _ORDER).read_text(encoding="utf-8"))
    submission = Submission(
        array=order["array"],
        part=order["part"],
        job_id=job_id,
        units=tuple(order["units"]),
        folder=str(folder),
        time=now(),
    )
    path = layout.submissions / f"{submission.array}.{job_id}.json"
    write_text(path, json.dumps(asdict(submission), indent=1) + "\n")
    return submission


def read_submissions(layout: RunLayout) -> list[Submission]:
    """Every submission of the run, oldest first. Fields of later versions are ignored."""
    known = set(Submission.__dataclass_fields__)
    found = []
    for path in _records(layout):
        content = json.loads(path.read_text(encoding="utf-8"))
        content["units"] = tuple(content["units"])
        found.append(Submission(**{key: value for key, value in content.items() if key in known}))
    return sorted(found, key=lambda submission: (submission.time, submission.array, submission.part))


def was_handed_over(layout: RunLayout) -> bool:
    """Whether anything of the run was ever submitted, or about to be."""
    return bool(_records(layout)) or any((folder / _ORDER).exists() for folder in listed(layout.launcher_logs))


def record_lost(layout: RunLayout, queue: Mapping[Element, JobState]) -> list[Submission]:
    """Record the submissions of this run that are in the queue and nowhere else, and return them."""
    recorded = {submission.job_id for submission in read_submissions(layout)}
    found = []
    for job_id, folder in sorted({(job_id, Path(job.folder)) for (job_id, _), job in queue.items()}):
        if job_id not in recorded and folder.parent == layout.launcher_logs and (folder / _ORDER).is_file():
            found.append(record(layout, folder, job_id))
    return found


def _records(layout: RunLayout) -> list[Path]:
    return [path for path in listed(layout.submissions) if path.suffix == ".json"]
