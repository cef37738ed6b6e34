"""Processes of this cluster's jobs, beside those of other clusters with the same job ids."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.slurm import processes
from tests.slurm.waiting import wait_for

JOB = "42"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str, str], int]]:
    """Start a process as the batch shell of job 42, or as the daemon of its step, of a cluster; return its id."""
    script = tmp_path / "job00042" / "slurm_script"
    script.parent.mkdir()
    script.write_text("read -r\n")
    started: list[subprocess.Popen[bytes]] = []

    def run(configuration: str, title: str = "") -> int:
        command = ["/bin/bash", str(script)] if not title else ["/bin/bash", "-c", f"exec -a '{title}' sleep 600"]
        environment = {**os.environ, "SLURM_CONF": configuration}
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, env=environment))
        cmdline = Path(f"/proc/{started[-1].pid}/cmdline")
        wait_for("the process has its title", lambda: cmdline.read_bytes().startswith((title or "/bin/bash").encode()))
        return started[-1].pid

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> str:
    """The configuration of this cluster."""
    monkeypatch.setenv("SLURM_CONF", "/own/slurm.conf")
    monkeypatch.setattr(processes, "numeric_job_id", lambda job: job)
    return "/own/slurm.conf"


def test_processes_of_another_cluster_are_not_found(start: Callable[..., int]) -> None:
    """The tests kill what they find: on a real node, that could be another user's job with the same number."""
    start("/other/slurm.conf")
    start("/other/slurm.conf", f"slurmstepd: [{JOB}.0]")
    for find in (processes.batch_shell, processes.step_daemon):
        with pytest.raises(StopIteration):
            find(JOB)


def test_processes_of_this_cluster_are_found(start: Callable[..., int], own: str) -> None:
    """Otherwise the test above proves nothing."""
    shell, daemon = start(own), start(own, f"slurmstepd: [{JOB}.0]")
    start("/other/slurm.conf")
    assert processes.batch_shell(JOB) == shell
    assert processes.step_daemon(JOB) == daemon
