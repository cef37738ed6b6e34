"""Slurm launcher: submit arrays in submitit's formats, split where they are longer than MaxArraySize."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hpcq.core.attempts import AttemptRecord, read_attempts
from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.files import storage_errors
from hpcq.core.paths import RunLayout
from hpcq.core.work_records import UnitKind
from hpcq.launch import job_script, submissions
from hpcq.launch.array_spec import ArraySpec, Dependency, Submission, UnitSpec
from hpcq.launch.job import UnitJob
from hpcq.launch.multinode import rendezvous
from hpcq.launch.recovery.node_exclusion import join_excluded, nodes_to_exclude
from hpcq.launch.recovery.preemption import SIGNAL_DELAY_S
from hpcq.launch.recovery.retry_policy import next_oom_step
from hpcq.launch.submission_files import write_submission
from hpcq.slurm import client, sbatch, squeue
from hpcq.slurm.sbatch import RejectedError, deferred_interrupts, submit_script
from hpcq.slurm.scontrol import NO_NODES_LEFT
from hpcq.slurm.squeue import job_name

SRUN_WAIT_MARGIN_S = 20
"""Seconds that `srun --wait` exceeds the rendezvous timeout: longer than a follower needs to report its error.

The timeout is included because a task that exits before it has connected to rank 0 can only be identified by rank 0,
at the timeout. srun must not end rank 0 before.
"""

_FIND_ATTEMPTS, _FIND_INTERVAL_S = 10, 1.0
"""How often, and after how many seconds, the queue is asked for a job that sbatch has accepted without naming it."""


@dataclass
class SlurmLauncher:
    """Submits arrays of the run at `layout`."""

    layout: RunLayout
    _jobs: dict[str, tuple[str, ...]] = field(init=False, default_factory=dict)
    _arrays: dict[str, ArraySpec] = field(init=False, default_factory=dict)
    _accepted: list[Submission] = field(init=False, default_factory=list)

    @cached_property
    def max_array_size(self) -> int:
        """MaxArraySize of the cluster, queried once."""
        return client.max_array_size()

    def submit(
        self, arrays: Sequence[ArraySpec], known_jobs: Mapping[str, Sequence[str]] | None = None
    ) -> list[Submission]:
        """Submit `arrays`, each after the arrays in its `depends_on`.

        Each submission is recorded as soon as Slurm has accepted it, so an error in between leaves no unrecorded job.

        Args:
            arrays: Arrays in an order in which dependencies come first.
            known_jobs: Job ids of arrays that were submitted before, in the order of their parts.

        Raises:
            SetupError: Slurm is missing, does not respond, or rejects an array.
            UserInputError: An option, a name or a path cannot be passed to sbatch.
        """
        client.require_clients()
        self._accepted = []
        self._jobs = {name: tuple(jobs) for name, jobs in (known_jobs or {}).items()}
        self._arrays = {array.name: array for array in arrays}
        for array in arrays:
            parts = split(array.units, self.max_array_size)
            found = [self._submit_part(array, part, units, len(parts)) for part, units in enumerate(parts)]
            self._jobs[array.name] = tuple(submission.job_id for submission in found)
        return self._accepted

    def _submit_part(self, array: ArraySpec, part: int, units: Sequence[UnitSpec], parts: int) -> Submission:
        folder = self._new_folder(array, part)
        environment = folder / "environment.sh"
        package = job_script.package_path(self.layout.folder, array.plugins)
        job_script.write_environment(environment, array.environment, threads=array.cpus_per_unit, package_path=package)
        spec = submissions.write_spec(folder, self.layout, array, part, units)
        oom_step = max(next_oom_step(self._attempts.get(unit.unit_id, [])) for unit in units)
        enlarged = replace(array, memory_gib=array.retries.memory_gib(array.memory_gib, oom_step))
        options = sbatch_options(enlarged, parts=parts, dependency=self._dependency(array, part))
        options["job_name"] = job_name(array.run, array.name, part)
        options["comment"] = str(folder)
        options["wckey"] = None  # submitit's default is rejected by clusters that enforce accounting by wckey
        options["setup"] = _setup(environment, array, package)
        jobs = [UnitJob.from_spec(array, unit, self.layout) for unit in units]
        with deferred_interrupts():
            job_id = self._sbatch_excluding_faulty(folder, array, options, jobs)
            submission = submissions.record_submission(self.layout, folder, spec, job_id)
        self._accepted.append(submission)
        return submission

    @cached_property
    def _attempts(self) -> Mapping[str, Sequence[AttemptRecord]]:
        """Attempts of the run by unit, read once."""
        return read_attempts(self.layout.attempts)

    def _sbatch_excluding_faulty(
        self, folder: Path, array: ArraySpec, options: Mapping[str, Any], jobs: Sequence[UnitJob]
    ) -> str:
        """Submit without nodes that had a recent fault; include them if no other node is left. Return the job id."""
        faulty = nodes_to_exclude(self._attempts, array.partition, array.retries)
        excluded = {**options, "exclude": join_excluded(array.exclude, faulty)}
        for last, chosen in ([(False, excluded)] if faulty else []) + [(True, options)]:
            script = write_submission(folder, python=array.environment.python, options=chosen, calls=jobs)
            try:
                return self._sbatch(folder, script)
            except RejectedError as error:
                if last or NO_NODES_LEFT not in str(error):
                    raise SetupError(self._rejection(array, str(error))) from error
        raise AssertionError("unreachable")

    def _sbatch(self, folder: Path, script: Path) -> str:
        """Submit the script of `folder` and return the job id; if its answer is lost, ask the queue for the job."""
        try:
            answer = submit_script(script)
        except RejectedError:
            if found := self._find_job(folder, attempts=1):
                return found
            raise
        found = answer.job_id or self._find_job(folder, attempts=_FIND_ATTEMPTS)
        if found is None:
            raise RejectedError(
                f"sbatch printed no job id, and the queue has no such job. It printed:\n{answer.output}"
            )
        return found

    def _find_job(self, folder: Path, *, attempts: int) -> str | None:
        """Return the id of the job whose comment is `folder`; None if the queue has none or does not answer."""
        for attempt in range(attempts):
            if attempt:
                time.sleep(_FIND_INTERVAL_S)
            with contextlib.suppress(SetupError):
                for job_id, job in squeue.poll(self.layout.name).items():
                    if job.comment == str(folder):
                        return job_id.partition("_")[0]
        return None

    def _rejection(self, array: ArraySpec, output: str) -> str:
        """Return the message for an array that sbatch did not accept: all that it printed, and what was accepted."""
        lines = [f"sbatch rejected array {array.name} (partition {array.partition}):"]
        lines += [f"  {line.removeprefix('sbatch: ').removeprefix('error: ')}" for line in output.splitlines()]
        if self._accepted:
            jobs = ", ".join(f"{one.array} as job {one.job_id}" for one in self._accepted)
            lines.append(f"Submitted before: {jobs}. `hpcq cancel {self.layout.name}` cancels them.")
        lines.append(sbatch.advice(output))
        return "\n".join(lines)

    def _new_folder(self, array: ArraySpec, part: int) -> Path:
        """Create a folder per submission: submitit names files by job id only, and a reinstalled cluster reuses ids."""
        root = self.layout.launcher_logs
        if "%" in str(root):
            raise UserInputError(
                f"{root}: Slurm interprets '%' in the path of a log. Choose another folder for paths.logs."
            )
        with storage_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(prefix=f"{array.name}.{part}.", dir=root))

    def _dependency(self, array: ArraySpec, part: int) -> str | None:
        if array.dependency is Dependency.NONE or not array.depends_on:
            return None
        jobs: list[str] = []
        for name in array.depends_on:
            known = self._jobs[name]
            if array.dependency is Dependency.AFTERCORR:
                # Arrays of the same length are split at the same indices: parts and elements correspond.
                jobs.append(known[part])
            elif array.element is not None:
                jobs.append(self._element(name, array.element))
            else:
                jobs += known
        return ":".join([array.dependency, *jobs])

    def _element(self, name: str, index: int) -> str:
        """Return Slurm's id of a unit of array `name`, submitted in this call; submitit makes one unit a plain job."""
        part, offset = divmod(index, self.max_array_size)
        job_id, units = self._jobs[name][part], split(self._arrays[name].units, self.max_array_size)[part]
        return job_id if len(units) == 1 else f"{job_id}_{offset}"


def _setup(environment: Path, array: ArraySpec, package: Path) -> list[str]:
    """Return the first lines of a batch script: permission check, epilogue trap, the unit's environment."""
    strict, check, enter = job_script.source_lines(environment)
    when = "always" if array.kind is UnitKind.MERGE else "failed"
    arguments = (job_script.script("epilogue.sh"), when, environment.parent, package, sys.executable)
    python = shlex.quote(array.environment.python)
    message = f'echo "hpcq: node $(hostname) has no interpreter "{python} >&2'
    return [
        strict,
        check,
        f". {shlex.join(map(str, (*arguments, array.environment.python)))}",
        enter,
        f"command -v {python} >/dev/null || {{ {message}; exit 127; }}",
    ]


def split(units: Sequence[UnitSpec], size: int) -> list[Sequence[UnitSpec]]:
    """Split `units` into parts of up to `size` units."""
    return [units[start : start + size] for start in range(0, len(units), size)]


def sbatch_options(array: ArraySpec, *, parts: int = 1, dependency: str | None = None) -> dict[str, Any]:
    """Return submitit's parameters for one of the `parts` of `array`; the parts share the throttle.

    Raises:
        UserInputError: A value cannot be written to a batch script, or the rendezvous timeout is invalid.
    """
    throttle = max(1, array.throttle // parts) if array.throttle else len(array.units)
    # Neither is inherited from sbatch: the CPUs since Slurm 22.05, and the variables after `--export=NONE`.
    srun_args = [f"--cpus-per-task={array.cpus_per_unit}", "--export=ALL"]
    if array.nodes > 1:
        # A node that fails reports its error to rank 0 before it exits, and all nodes exit when rank 0 does.
        variables = {
            **os.environ,
            **dict(array.environment.variables),
        }  # sbatch exports the submitting shell's variables
        srun_args += [
            "--kill-on-bad-exit=0",
            f"--wait={math.ceil(rendezvous.read_timeout_s(variables)) + SRUN_WAIT_MARGIN_S}",
        ]
    more: dict[str, str | int | bool] = {**array.extra, "requeue": True, "kill-on-invalid-dep": "yes"}
    options = {
        "partition": array.partition,
        "time": array.time_limit_minutes,
        "nodes": array.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": array.cpus_per_unit,
        "gres": _gres(array),
        "mem": f"{math.ceil(array.memory_gib * 1024)}M" if array.memory_gib else None,
        "constraint": array.features,
        "account": array.account,
        "qos": array.qos,
        "exclude": array.exclude,
        "dependency": dependency,
        "array_parallelism": throttle,
        # Slurm sends a signal that is due before a short job starts immediately, and again after each start.
        "signal_delay_s": min(SIGNAL_DELAY_S, array.time_limit_minutes * 60 // 4),
        "srun_args": srun_args,
        "additional_parameters": {key: value for key, value in more.items() if value is not False},
    }
    _refuse_unprintable(array.name, {**options, **more}.items())
    return {key: value for key, value in options.items() if value is not None}


def _gres(array: ArraySpec) -> str | None:
    if not array.gpus_per_node:
        return None
    return f"gpu:{array.gres_type}:{array.gpus_per_node}" if array.gres_type else f"gpu:{array.gpus_per_node}"


def _refuse_unprintable(name: str, options: Iterable[tuple[str, object]]) -> None:
    """Refuse line breaks: an option is a line of the batch script, and a line break would start a command."""
    for key, value in options:
        if isinstance(value, str) and not value.isprintable():
            raise UserInputError(f"Array {name}: {key} = {value!r} contains unprintable characters: remove them.")
