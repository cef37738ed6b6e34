"""Watchdog of vLLM's workers: who starts it, and when a worker exits."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hpcq.core.processes import identity, is_alive
from hpcq.evaluate.backends.vllm import watchdog
from tests.slurm.waiting import wait_for
from tests.tiny_llama import write_base
from tests.vllm.loading_worker import FOLDER_VARIABLE

TIMEOUT_S = 300


def threads_of_watchdogs() -> list[threading.Thread]:
    """The running watchdogs of this process."""
    return [thread for thread in threading.enumerate() if thread.name == "hpcq-watchdog"]


def test_the_worker_owns_the_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing the module starts no thread; constructing a worker, whose class vLLM extends so, starts one."""
    monkeypatch.setenv(watchdog.ROOT_VARIABLE, str(identity(os.getpid())))

    class Base:
        def __init__(self, rank: int) -> None:
            self.rank = rank

    class Worker(Base):
        pass

    Worker.__bases__ = (*Worker.__bases__, watchdog.WorkerExtension)  # as in vLLM's WorkerWrapperBase.init_worker
    assert threads_of_watchdogs() == []
    worker = Worker(rank=1)
    assert worker.rank == 1
    assert threads_of_watchdogs() == [worker.hpcq_watchdog._thread]
    worker.hpcq_watchdog.stop()
    assert threads_of_watchdogs() == []


def test_workers_exit_with_the_root_process_while_they_load(tmp_path: Path) -> None:
    """The root process of an engine over two workers is killed before the workers are ready."""
    loading = tmp_path / "loading"
    loading.mkdir()
    model = write_base(tmp_path / "model")
    command = [sys.executable, "-m", "tests.vllm.loading_worker", str(model)]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, env={**os.environ, FOLDER_VARIABLE: str(loading)}, stdout=log, stderr=log) as root,
    ):
        wait_for(
            "both workers load",
            lambda: len(list(loading.iterdir())) == 2 or root.poll() is not None,
            TIMEOUT_S,
        )
        workers = [str(identity(int(path.name))) for path in loading.iterdir()]
        assert len(workers) == 2, (tmp_path / "log").read_text()
        assert all(map(is_alive, workers))
        root.kill()
    wait_for("the workers have exited", lambda: not any(map(is_alive, workers)), TIMEOUT_S)
