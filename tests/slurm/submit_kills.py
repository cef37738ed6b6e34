"""Kills of `hpcq submit` at random moments: afterwards it is typed again, and every unit must run exactly once.

    python -m tests.slurm.submit_kills --kills 100 --seed 7

Half of the moments are uniform over the whole life of the command, which is measured first. The others follow one of
its calls of sbatch by up to `AFTER_CALL_S`: they are before, during and after the acceptance of each array.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcq.core.attempts import read_attempts
from hpcq.core.outcomes import Outcome
from hpcq.core.paths import RunLayout
from hpcq.launch.submissions import read_submissions
from hpcq.slurm.squeue import poll
from tests.command_line import REHEARSAL
from tests.slurm.cluster import PATIENT, VirtualCluster, slurm_conf
from tests.slurm.synthetic_units import layout_at

AFTER_CALL_S = 0.12
POLL_S = 0.002
END_TIMEOUT_S = 900.0
BATCH = 10
"""Trials whose jobs run at the same time."""

KINDS = tuple(itertools.product((signal.SIGINT, signal.SIGKILL), ("process", "group")))
UNITS = 4
"""Of the manifest: a quantization, two evaluations, a merge; each is an array of its own."""

_SBATCH = """#!/usr/bin/env bash
echo "$@" > "$(mktemp "$HPCQ_TEST_CALLS/XXXXXX")"
PATH=${PATH#*:}
exec sbatch "$@"
"""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run whose submission was killed.

    Attributes:
        name: Name of the run.
        layout: Paths of the run.
        moment: When it was killed, for messages.
        calls: Number of calls of sbatch until then.
        was_running: Whether the command was still running.
    """

    name: str
    layout: RunLayout
    moment: str
    calls: int
    was_running: bool


class Killer:
    """Submits runs in `folder`, kills the command, and submits them again.

    Args:
        folder: Working directory of the commands.
        cluster: The cluster, whose profile is written.
        python: Interpreter of hpcq.
        seed: Seed of all moments.
    """

    def __init__(self, folder: Path, cluster: VirtualCluster, python: Path, seed: int) -> None:
        self._folder = folder
        self._python = python
        self._random = random.Random(seed)  # noqa: S311 (moments, not secrets)
        self._manifest = folder / "manifest.toml"
        self._manifest.write_text(REHEARSAL.replace("shards = 2", "shards = 1"))
        self._options = ["-O", f"cluster.profile={cluster.profile}"]
        site = folder / "site"
        site.mkdir()
        (site / "sbatch").write_text(_SBATCH)
        (site / "sbatch").chmod(0o700)
        self._path = f"{site}{os.pathsep}{os.environ['PATH']}"
        self._life_s = 0.0

    def measure(self) -> Trial:
        """Submit a run without a kill, to know how long that takes."""
        trial = Trial(
            name="whole", layout=layout_at(self._folder, "whole"), moment="never", calls=UNITS, was_running=False
        )
        start_s = time.monotonic()
        self._submit_again(trial.name)
        self._life_s = time.monotonic() - start_s
        return trial

    def kill_one(self, number: int) -> Trial:
        """Kill one submission and submit it again; return before its jobs have ended."""
        name = f"killed-{number}"
        kind, target = KINDS[number % len(KINDS)]
        call = 1 + self._random.randrange(UNITS) if number // len(KINDS) % 2 else 0
        delay_s = self._random.uniform(0, AFTER_CALL_S if call else self._life_s)
        calls = self._folder / f"{name}-calls"
        calls.mkdir()
        process = self._start(name, calls)
        while call and process.poll() is None and len(list(calls.iterdir())) < call:
            time.sleep(POLL_S)
        time.sleep(delay_s)
        was_running = process.poll() is None
        if was_running:
            (os.killpg if target == "group" else os.kill)(process.pid, kind)
        process.communicate()
        made = len(list(calls.iterdir()))
        moment = f"{kind.name} to the {target} {delay_s:.3f} s after " + (f"call {call} of sbatch" if call else "start")
        self._submit_again(name)
        return Trial(
            name=name, layout=layout_at(self._folder, name), moment=moment, calls=made, was_running=was_running
        )

    def _start(self, name: str, calls: Path) -> subprocess.Popen[bytes]:
        # Runs share quantized checkpoints by their address.
        own = ("-O", f"run.name={name}", "-O", f"paths.checkpoints={name}/checkpoints")
        return subprocess.Popen(
            [str(self._python), "-m", "hpcq", "submit", str(self._manifest), *self._options, *own],
            cwd=self._folder,
            env={**os.environ, "PATH": self._path, "HPCQ_TEST_CALLS": str(calls)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _submit_again(self, name: str) -> None:
        with tempfile.TemporaryDirectory() as calls:
            process = self._start(name, Path(calls))
            output, _ = process.communicate()
        if process.returncode:
            raise AssertionError(f"{name}: the second submit exited with {process.returncode}: {output.decode()}")


def wait_until_ended(trials: Sequence[Trial]) -> None:
    """Wait until no job of the runs is pending or running."""
    deadline_s = time.monotonic() + END_TIMEOUT_S
    for trial in trials:
        while any(job.state.unit_state in ("pending", "running") for job in poll(trial.name).values()):
            if time.monotonic() > deadline_s:
                raise AssertionError(f"{trial.name}: its jobs have not ended: {poll(trial.name)}")
            time.sleep(0.3)


def problems(trial: Trial) -> list[str]:
    """Return what is wrong with a run that has ended."""
    attempts = read_attempts(trial.layout.attempts)
    jobs = poll(trial.name)
    recorded = {one.job_id for one in read_submissions(trial.layout)}
    found = [] if len(attempts) == UNITS else [f"{len(attempts)} of {UNITS} units ran"]
    found += [
        f"{unit} had the attempts {[(one.job_id, str(one.outcome), one.reason) for one in records]}"
        for unit, records in attempts.items()
        if [one.outcome for one in records] != [Outcome.DONE]
    ]
    found += [f"job {job_id} has no record" for job_id in jobs if job_id.partition("_")[0] not in recorded]
    found += [f"job {job_id} is {job.state}" for job_id, job in jobs.items() if job.state.unit_state != "done"]
    return [f"{trial.name} ({trial.moment}): {each}" for each in found]


def run_trials(
    folder: Path, cluster: VirtualCluster, python: Path, *, kills: int, seed: int
) -> tuple[list[Trial], list[str]]:
    """Kill `kills` submissions, and return all trials and problems. Commands that ended before do not count."""
    killer = Killer(folder, cluster, python, seed)
    numbers = itertools.count()
    trials, found = list[Trial](), problems_of([killer.measure()])
    while (left := kills - sum(trial.was_running for trial in trials)) > 0:
        batch = [killer.kill_one(next(numbers)) for _ in range(min(left, BATCH))]
        found += problems_of(batch)
        trials += batch
        sys.stderr.write(f"{len(trials)} runs, {len(found)} problems\n")
    return trials, found


def problems_of(trials: Sequence[Trial]) -> list[str]:
    """Wait for the jobs of the runs and return what is wrong with them."""
    wait_until_ended(trials)
    return [each for trial in trials for each in problems(trial)]


def main() -> int:
    """Run the trials on a cluster of their own; exit code 1: something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.slurm.submit_kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))  # noqa: S311
    options = parser.parse_args()
    with VirtualCluster(settings=PATIENT) as cluster, slurm_conf(cluster), tempfile.TemporaryDirectory() as folder:
        cluster.write_profile({"core": sys.executable, "transformers": sys.executable})
        start_s = time.monotonic()
        trials, found = run_trials(Path(folder), cluster, Path(sys.executable), kills=options.kills, seed=options.seed)
    killed = [trial for trial in trials if trial.was_running]
    calls = Counter(trial.calls for trial in killed)
    sys.stdout.write(
        f"{len(trials)} runs with seed {options.seed} in {time.monotonic() - start_s:.0f} s: {len(killed)} killed "
        f"before the end, after 0, 1, … calls of sbatch: {[calls[count] for count in range(UNITS + 1)]}; "
        f"{len(found)} problems\n"
    )
    sys.stdout.write("".join(f"{each}\n" for each in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
