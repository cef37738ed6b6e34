"""The job id in what sbatch prints, and interrupts that wait for its record."""

from __future__ import annotations

import signal

import pytest

from hpcq.slurm.environment import client_environment
from hpcq.slurm.sbatch import deferred_interrupts, is_job_limit, parse_job_id

OUTPUTS = {
    "120\n": ("120", None),
    "120;prometheus\n": ("120", "prometheus"),
    "Submitted batch job 120\n": ("120", None),
    "Submitted batch job 120 on cluster prometheus\n": ("120", "prometheus"),
    "Your group runs job 7.\n120\n": ("120", None),
    "Submitted batch job 120\nEstimated cost: 4500 credits\n": ("120", None),
    "Welcome: job 7 waits\n": (None, None),
    "": (None, None),
}


@pytest.mark.parametrize("output", OUTPUTS)
def test_the_job_id_is_a_line_of_its_own(output: str) -> None:
    """Numbers in other texts are no job ids; sbatch names the cluster if there are several."""
    assert parse_job_id(output) == OUTPUTS[output]


POLICY = (
    "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (POLICY, True),
        (f"QOSMaxSubmitJobPerUserLimit\n{POLICY}", True),
        (f"AssocGrpSubmitJobsLimit\n{POLICY}", True),
        (f"QOSMaxWallDurationPerJobLimit\n{POLICY}", False),
        (f"AssocMaxCpuPerJobLimit\n{POLICY}", False),
        ("Invalid account", False),
    ],
)
def test_a_limit_on_jobs_is_known_by_its_name(output: str, *, expected: bool) -> None:
    """Observed: "job submit limit" is in the text of every violation, so a merge was requeued without end."""
    assert is_job_limit(output) is expected


def test_an_interrupt_waits_for_the_end_of_the_block() -> None:
    """It is delivered afterwards, and the handler of before is back."""
    done = []

    def submit_and_record() -> None:
        with deferred_interrupts():
            signal.raise_signal(signal.SIGINT)
            done.append("recorded")

    with pytest.raises(KeyboardInterrupt):
        submit_and_record()
    assert done == ["recorded"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_only_variables_that_find_the_cluster_are_kept() -> None:
    """Options of the clients are removed, and everything else stays."""
    kept = {"SLURM_CONF": "/etc/slurm.conf", "HF_TOKEN": "x", "PATH": "/bin"}
    options = {"SBATCH_MEM_PER_NODE": "1", "SLURM_TIME_FORMAT": "relative", "SQUEUE_USERS": "root"}
    assert client_environment({**kept, **options}) == kept
