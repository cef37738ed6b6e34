"""Slurm launcher: submit arrays in submitit's formats, split where they are longer than MaxArraySize."""

from __future__ import annotations

import contextlib
import itertools
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

from hpcq.catalog.plugins import Plugin
from hpcq.core.attempts import AttemptRecord, read_attempts
from hpcq.core.errors import JobLimitError, SetupError, UserInputError
from hpcq.core.files import storage_errors
from hpcq.core.paths import RunLayout
from hpcq.core.permissions import Trust, trust_of
from hpcq.core.work_records import UnitKind
from hpcq.launch import job_script, submissions
from hpcq.launch.array_spec import ArraySpec, Dependency, Submission, UnitSpec
from hpcq.launch.job import UnitJob
from hpcq.launch.multinode import rendezvous
from hpcq.launch.package_snapshot import Snapshot, make_snapshot
from hpcq.launch.recovery.node_exclusion import join_excluded, nodes_to_exclude
from hpcq.launch.recovery.preemption import SIGNAL_DELAY_S
from hpcq.launch.recovery.retry_policy import next_oom_step
from hpcq.launch.submission_files import write_records, write_script
from hpcq.slurm import client, sbatch, squeue
from hpcq.slurm.client import ClusterSettings
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
    """Submits arrays of the run at `layout` to `cluster`; None: to the cluster of this machine."""

    layout: RunLayout
    cluster: str | None = None
    _jobs: dict[str, tuple[str, ...]] = field(init=False, default_factory=dict)
    _arrays: dict[str, ArraySpec] = field(init=False, default_factory=dict)
    _accepted: list[Submission] = field(init=False, default_factory=list)
    _snapshots: dict[tuple[Plugin, ...], Snapshot] = field(init=False, default_factory=dict)

    @cached_property
    def settings(self) -> ClusterSettings:
        """Settings of the cluster, queried once."""
        return client.cluster_settings()

    @property
    def _part_size(self) -> int:
        """Maximum number of elements of an array: of the cluster, or of the class that allows least.

        All arrays are split at the same indices, because an element may depend on the same element of another array.
        """
        limits = (one.max_array_size for one in self._arrays.values() if one.max_array_size)
        return min([self.settings.max_array_size, *limits])

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
        with client.on_cluster(self.cluster):
            for array in arrays:
                parts = split(array.units, self._part_size)
                found = [self._submit_part(array, part, units, len(parts)) for part, units in enumerate(parts)]
                self._jobs[array.name] = tuple(submission.job_id for submission in found)
        return self._accepted

    def _submit_part(self, array: ArraySpec, part: int, units: Sequence[UnitSpec], parts: int) -> Submission:
        folder = self._new_folder(array, part)
        environment = folder / "environment.sh"
        snapshot = self._snapshot(array.plugins)
        job_script.write_environment(environment, array.environment, threads=array.cpus_per_unit, snapshot=snapshot)
        spec = submissions.write_spec(
            folder, self.layout, array, part, units, cluster=self.cluster, home=self.settings.name
        )
        oom_step = max(next_oom_step(self._attempts.get(unit.unit_id, [])) for unit in units)
        enlarged = replace(array, memory_gib=array.retries.memory_gib(array.memory_gib, oom_step))
        options = sbatch_options(enlarged, parts=parts, dependency=self._dependency(array, part))
        options["job_name"] = job_name(array.run, array.name, part)
        options["comment"] = f"{array.comment} {folder}" if array.comment else str(folder)
        options["wckey"] = None  # submitit's default is rejected by clusters that enforce accounting by wckey
        options["setup"] = _setup(environment, array, snapshot, trust_of(self.layout))
        write_records(folder, [UnitJob.from_spec(array, unit, self.layout) for unit in units])
        with deferred_interrupts():
            job_id, cluster = self._sbatch_excluding_faulty(folder, array, options, len(units))
            submission = submissions.record_submission(self.layout, folder, spec, job_id, cluster=cluster)
        self._accepted.append(submission)
        return submission

    def _snapshot(self, plugins: tuple[Plugin, ...]) -> Snapshot:
        """Return the snapshot for arrays with these plugins, the same one for all arrays of a submission."""
        if plugins not in self._snapshots:
            self._snapshots[plugins] = make_snapshot(self.layout, plugins)
        return self._snapshots[plugins]

    @cached_property
    def _attempts(self) -> Mapping[str, Sequence[AttemptRecord]]:
        """Attempts of the run by unit, read once."""
        return read_attempts(self.layout.attempts)

    def _sbatch_excluding_faulty(
        self, folder: Path, array: ArraySpec, options: Mapping[str, Any], elements: int
    ) -> tuple[str, str | None]:
        """Call `_sbatch` without nodes that had a recent fault; include them if no other node is left."""
        faulty = nodes_to_exclude(self._attempts, array.partition, array.retries)
        excluded = {**options, "exclude": join_excluded(array.exclude, faulty)}
        for last, chosen in ([(False, excluded)] if faulty else []) + [(True, options)]:
            script = write_script(folder, python=array.environment.python, options=chosen, elements=elements)
            try:
                return self._sbatch(folder, script)
            except RejectedError as error:
                if last or NO_NODES_LEFT not in str(error):
                    kind = JobLimitError if sbatch.is_job_limit(str(error)) else SetupError
                    raise kind(self._rejection(array, str(error))) from error
        raise AssertionError("unreachable")

    def _sbatch(self, folder: Path, script: Path) -> tuple[str, str | None]:
        """Submit the script of `folder`; return the job id, and the cluster if sbatch names it.

        If the answer is lost, ask the queue for the job. Within `client.patience`, repeat the call while the controller
        does not respond: only after the queue has answered that it has no such job.
        """
        calls = itertools.count()

        def submit() -> tuple[str, str | None]:
            if next(calls) and (found := self._queued_job(folder)):
                return found, None
            return self._sbatch_once(folder, script)

        return client.repeat_until_answered(submit)

    def _sbatch_once(self, folder: Path, script: Path) -> tuple[str, str | None]:
        try:
            answer = submit_script(script)
        except RejectedError:
            if found := self._find_job(folder, attempts=1):
                return found, None
            raise
        found = answer.job_id or self._find_job(folder, attempts=_FIND_ATTEMPTS)
        if found is None:
            raise RejectedError(
                f"sbatch printed no job id, and the queue has no such job. It printed:\n{answer.output}"
            )
        return found, answer.cluster

    def _find_job(self, folder: Path, *, attempts: int) -> str | None:
        """Return the id of the job of `folder`; None if the queue has none or does not respond."""
        for attempt in range(attempts):
            if attempt:
                time.sleep(_FIND_INTERVAL_S)
            with contextlib.suppress(SetupError), client.patience(0.0):
                if found := self._queued_job(folder):
                    return found
        return None

    def _queued_job(self, folder: Path) -> str | None:
        """Return the id of the job of `folder`; None if the queue has none.

        Raises:
            SetupError: Slurm does not respond.
        """
        queue = squeue.poll(self.layout.name)
        found = submissions.unrecorded_jobs(self.layout, queue, self.cluster)
        return next((job_id for job_id, its_folder in found if its_folder == folder), None)

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
        part, offset = divmod(index, self._part_size)
        job_id, units = self._jobs[name][part], split(self._arrays[name].units, self._part_size)[part]
        return job_id if len(units) == 1 else f"{job_id}_{offset}"


def _setup(environment: Path, array: ArraySpec, snapshot: Snapshot, trust: Trust) -> list[str]:
    """Return the first lines of a batch script: permission check, epilogue trap, the unit's environment."""
    python = array.environment.python
    when = "always" if array.kind is UnitKind.MERGE else "failed"
    epilogue = (snapshot.script("epilogue.sh"), when, environment.parent, snapshot.path, sys.executable, python)
    message = f'echo "hpcq: node $(hostname) has no interpreter "{shlex.quote(python)} >&2'
    return [
        *job_script.check_lines(environment, snapshot, job_script.cached_programs(array.environment), trust),
        f". {shlex.join(map(str, epilogue))}",
        f". {shlex.quote(str(environment))}",
        f"command -v {shlex.quote(python)} >/dev/null || {{ {message}; exit 127; }}",
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
    gpus = _gpu_request(array)
    # Stated, because a site may have another default (`SBATCH_EXPORT` in a wrapper, a submit plugin).
    more: dict[str, str | int | bool] = {"export": "ALL", **array.extra, "requeue": True, "kill-on-invalid-dep": "yes"}
    if "gpus" in gpus:  # unknown to submitit
        more["gpus"] = gpus["gpus"]
    options = {
        "partition": array.partition,
        "time": array.time_limit_minutes,
        "nodes": array.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": array.cpus_per_unit,
        "gres": gpus.get("gres"),
        "gpus_per_node": gpus.get("gpus-per-node"),
        **_memory_request(array),
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


def _gpu_request(array: ArraySpec) -> dict[str, str]:
    """Return the request for GPUs: per node, or with `--gpus` for all nodes together."""
    if not array.gpus_per_node or array.gpu_option == "none":
        return {}
    count = array.gpus_per_node * (array.nodes if array.gpu_option == "gpus" else 1)
    parts = ["gpu"] if array.gpu_option == "gres" else []
    return {array.gpu_option: ":".join([*parts, *([array.gres_type] if array.gres_type else []), str(count)])}


def _memory_request(array: ArraySpec) -> dict[str, str]:
    """Return the request for host memory: per node, or the same divided by the unit's CPUs or GPUs on a node."""
    parts = {"mem": 1, "mem-per-cpu": array.cpus_per_unit, "mem-per-gpu": array.gpus_per_node}.get(array.memory_option)
    if not array.memory_gib or not parts:
        return {}
    return {array.memory_option.replace("-", "_"): f"{math.ceil(array.memory_gib * 1024 / parts)}M"}


def _refuse_unprintable(name: str, options: Iterable[tuple[str, object]]) -> None:
    """Refuse line breaks: an option is a line of the batch script, and a line break would start a command."""
    for key, value in options:
        if isinstance(value, str) and not value.isprintable():
            raise UserInputError(f"Array {name}: {key} = {value!r} contains unprintable characters: remove them.")
