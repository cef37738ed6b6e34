"""Slurm's reasons for jobs that do not start, and its messages for rejected ones."""

from __future__ import annotations

import pytest

from hpcq.core.work_records import UnitKind
from hpcq.monitor.pending_warnings import pending_warnings
from hpcq.monitor.unit_job import UnitJobStatus
from hpcq.monitor.units import UnitRecord
from hpcq.slurm.jobs import SlurmJob, SlurmState
from hpcq.slurm.reasons import key_to_correct, start_problem

PERMANENT = {
    "PartitionTimeLimit": "gpu_classes.{gpu_class}.max_minutes",
    "PartitionNodeLimit": "gpu_classes.{gpu_class}.nodes",
    "BadConstraints": "gpu_classes.{gpu_class}.memory_gib, cpus_per_unit, gpus_per_node or features",
    "ReqNodeNotAvail, UnavailableNodes:h100-[1-2]": "gpu_classes.{gpu_class}.exclude or partition",
    "InvalidAccount": "slurm.account",
    "InvalidQOS": "slurm.qos",
    "ReservationDeleted": "slurm.extra.reservation",
    "AssocMaxWallDurationPerJobLimit": "slurm.account",
    "AssocGrpGRESMinutes": "slurm.account",
    "AssocGrpCPUMinutesLimit": "slurm.account",
    "QOSMaxGRESPerJob": "slurm.qos",
    "QOSMaxCpuPerNode": "slurm.qos",
    "QOSMinGRES": "slurm.qos",
}
TEMPORARY = {
    "AssocGrpGRES": "slurm.account",
    "QOSGrpCpuLimit": "slurm.qos",
    "PartitionDown": "gpu_classes.{gpu_class}.partition",
    "PartitionInactive": "gpu_classes.{gpu_class}.partition",
}
HELD = (
    "launch failed requeued held",
    "launch_failed_requeued_held",
    "user_env_retrieval_failed_requeued_held",
    "job requeued in held state",
    "job_requeued_in_special_exit_state",
)
USUAL = (
    None,
    "None",
    "Priority",
    "Resources",
    "Dependency",
    "BeginTime",
    "JobArrayTaskLimit",
    "Licenses",
    "Reservation",
    "AssocMaxJobsLimit",
    "AssocGrpJobsLimit",
    "AssocGrpCPURunMinutesLimit",
    "QOSMaxJobsPerUserLimit",
    "QOSMaxGRESPerUser",
    "ReqNodeNotAvail, May be reserved for other job",
    "ReqNodeNotAvail, Reserved for maintenance",
    "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions",
)


@pytest.mark.parametrize("reason", [*PERMANENT, *TEMPORARY])
def test_a_job_that_does_not_start_has_a_cause_and_a_key(reason: str) -> None:
    """Of an account and a QOS, a limit of each job is permanent, and one of all jobs is not."""
    problem = start_problem(reason)
    assert problem is not None
    assert problem.key == (PERMANENT | TEMPORARY)[reason]
    assert problem.is_permanent == (reason in PERMANENT)


def job_with(reason: str, state: SlurmState = SlurmState.PENDING) -> UnitJobStatus:
    """Return a job for which Slurm reports the reason."""
    return UnitJobStatus(job_id="1", array="a", job=SlurmJob(job_id="1", state=state, reason=reason))


@pytest.mark.parametrize("reason", HELD)
def test_a_job_that_slurm_holds_after_a_failed_start_is_released(reason: str) -> None:
    """Observed: `resume` skipped such jobs as pending, without a warning, for ever. Versions differ in underscores."""
    assert job_with(reason).is_held
    assert not job_with(reason).cannot_start
    assert not job_with(reason, SlurmState.RUNNING).is_held
    unit = UnitRecord(id="u", kind=UnitKind.EVALUATE, gpu_class="h100")
    (warning,) = pending_warnings("mine", [unit], {"u": job_with(reason)})
    assert warning.startswith(f"1 unit on h100 may not start ({reason}): ")
    assert warning.endswith(" `hpcq resume mine` releases them.")


def test_a_job_that_was_requeued_too_often_is_submitted_again() -> None:
    """Its release may need an administrator."""
    job = job_with("JobHoldMaxRequeue")
    assert (job.is_held, job.cannot_start) == (False, True)
    (warning,) = pending_warnings("mine", [UnitRecord(id="u", kind=UnitKind.EVALUATE)], {"u": job})
    assert warning.endswith(" `hpcq resume mine` submits them again.")


@pytest.mark.parametrize("reason", ["JobHeldUser", "JobHeldAdmin", "Priority"])
def test_a_job_that_a_user_or_an_administrator_holds_is_not_released(reason: str) -> None:
    """The user or an administrator wants it held."""
    assert not job_with(reason).is_held


@pytest.mark.parametrize("reason", USUAL)
def test_a_job_that_waits_as_usual_is_no_problem(reason: str | None) -> None:
    """Other jobs end, a maintenance ends, the user's own jobs end."""
    assert start_problem(reason) is None


@pytest.mark.parametrize(
    ("output", "key"),
    [
        ("Invalid account or account/partition combination specified", "slurm.account"),
        ("Invalid qos specification", "slurm.qos"),
        ("Requested reservation is invalid", "slurm.extra.reservation"),
        ("invalid partition specified: nope\nInvalid partition name specified", "gpu_classes.NAME.partition"),
        (
            "Requested time limit is invalid (missing or exceeds some limit)",
            "gpu_classes.NAME.max_minutes",
        ),
        ("Invalid node name specified", "slurm.exclude"),
        ("Unspecified error", None),
    ],
)
def test_a_rejection_names_the_key(output: str, key: str | None) -> None:
    """The messages are those of Slurm 22.05; for those of a site's filter no key is known."""
    assert key_to_correct(output) == key
