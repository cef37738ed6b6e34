"""Warnings about pending jobs that cannot start: Slurm's reason, its meaning, and the key of the profile to correct."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from hpcq.core.sentences import one_line
from hpcq.monitor.unit_job import UnitJobStatus
from hpcq.monitor.units import Unit
from hpcq.slurm.reasons import start_problem


def pending_warnings(run: str, units: Sequence[Unit], jobs: Mapping[str, UnitJobStatus]) -> tuple[str, ...]:
    """Return one sentence per reason and node class."""
    counts = Counter(
        (job.job.reason, unit.gpu_class) for unit in units if (job := jobs.get(unit.id)) and job.job and job.is_pending
    )
    found = ((reason, gpu_class, count) for (reason, gpu_class), count in counts.items())
    return tuple(filter(None, (_warning(run, *one) for one in found)))


def _warning(run: str, reason: str | None, gpu_class: str | None, count: int) -> str | None:
    problem = start_problem(reason)
    if problem is None or reason is None:
        return None
    units = f"{count} {'unit' if count == 1 else 'units'}" + (f" on {gpu_class}" if gpu_class else "")
    outlook = "cannot start" if problem.is_permanent else "may not start"
    sentence = f"{units} {outlook} ({one_line(reason.partition(',')[0])}): {problem.cause}."
    if problem.is_released:
        return f"{sentence} `hpcq resume {run}` releases them."
    if problem.key is None:
        return f"{sentence} `hpcq resume {run}` submits them again." if problem.is_permanent else sentence
    key = problem.key.format(gpu_class=gpu_class or "NAME")
    return (
        f"{sentence} Correct {key} in the cluster profile, and run `hpcq resume {run} -O cluster.profile=FILE`:"
        " it submits them again."
    )
