"""Status of a run with the states of its jobs, or without them while Slurm does not respond."""

from __future__ import annotations

from collections.abc import Sequence

from hpcq.core.paths import RunLayout
from hpcq.launch.job_status import unit_jobs_if_any
from hpcq.monitor.status import RunStatus, run_status
from hpcq.monitor.units import Unit
from hpcq.slurm.client import SlurmUnavailableError

TIMEOUT_S = 4.0
"""Timeout of a call to Slurm: what the run's folder says is shown within 5 s."""


def status_with_jobs(layout: RunLayout, units: Sequence[Unit], *, patient: bool = False) -> RunStatus:
    """Return the state of the run, with one call to Slurm if something was submitted.

    If Slurm does not respond, the states are those in the run's folder, and `RunStatus.slurm_error` has the reason.

    Args:
        layout: Paths of the run.
        units: Its units.
        patient: Wait for Slurm as long as other commands do, instead of TIMEOUT_S.

    Raises:
        SetupError: Slurm is missing.
    """
    try:
        jobs = unit_jobs_if_any(layout, timeout_s=None if patient else TIMEOUT_S)
    except SlurmUnavailableError as error:
        return run_status(layout, units, {}, slurm_error=str(error))
    return run_status(layout, units, jobs)
