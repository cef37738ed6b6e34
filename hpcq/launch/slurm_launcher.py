"""Hands array orders to Slurm through submitit: one sbatch an array, or several where the cluster allows no longer one.

Knows submitit's SlurmExecutor and sbatch's options. Knows neither plan nor manifest.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import shlex
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hpcq.core.attempts import AttemptRecord, read_attempts
from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.files import storage_faults
from hpcq.core.paths import RunLayout
from hpcq.core.work import Kind
from hpcq.launch import job_script, submissions
from hpcq.launch.array_spec import ArrayOrder, Dependency, Submission, UnitOrder
from hpcq.launch.job import UnitJob
from hpcq.launch.multinode import rendezvous
from hpcq.launch.node_exclusion import joined, nodes_to_avoid
from hpcq.launch.recovery.preemption import SIGNAL_DELAY_S
from hpcq.launch.recovery.retry_policy import next_rung
from hpcq.slurm import squeue
from hpcq.slurm.scontrol import NO_SUCH_NODES

STRAGGLERS_S = 20
"""After one task of a unit over several nodes has ended, srun ends the others: longer than last words take.

To the deadline of the nodes' meeting: where one ends before it has a line to node 0, nobody else can tell which it was.
"""


@dataclass
class SlurmLauncher:
    """Submits arrays of the run that lies at `layout`."""

    layout: RunLayout
    _jobs: dict[str, tuple[str, ...]] = field(init=False, default_factory=dict)
    _orders: dict[str, ArrayOrder] = field(init=False, default_factory=dict)

    @cached_property
    def max_array_size(self) -> int:
        """The cluster's limit, asked once."""
        return squeue.max_array_size()

    def submit(
        self, arrays: Sequence[ArrayOrder], known_jobs: Mapping[str, Sequence[str]] | None = None
    ) -> list[Submission]:
        """Submit `arrays`, each after those that it names in `depends_on`.

        known_jobs: job ids of arrays that were submitted before, in the order of their parts. Each submission is
        recorded as soon as Slurm has accepted it, so a failure in the middle leaves nothing that is not known.

        Raises:
            SetupError: there is no Slurm, it does not answer, or it refuses an array.
            UserInputError: an option, a name or a path that cannot be handed to sbatch.
        """
        squeue.require_clients()
        self._jobs = {name: tuple(jobs) for name, jobs in (known_jobs or {}).items()}
        self._orders = {order.name: order for order in arrays}
        accepted = []
        for order in arrays:
            parts = split(order.units, self.max_array_size)
            found = [self._submit_part(order, part, units, len(parts)) for part, units in enumerate(parts)]
            self._jobs[order.name] = tuple(submission.job_id for submission in found)
            accepted += found
        return accepted

    def _submit_part(self, order: ArrayOrder, part: int, units: Sequence[UnitOrder], parts: int) -> Submission:
        folder = self._new_folder(order, part)
        environment, package = folder / "environment.sh", job_script.package_path(self.layout.folder)
        job_script.write_environment(environment, order.environment, threads=order.cpus_per_unit, package_path=package)
        submissions.write_order(folder, self.layout, order, part, units)
        rung = max(next_rung(self._attempts.get(unit.unit_id, [])) for unit in units)
        larger = replace(order, memory_gib=order.retries.memory_gib(order.memory_gib, rung))
        options = sbatch_options(larger, parts=parts, dependency=self._dependency(order, part))
        options["job_name"] = squeue.job_name(order.run, order.name, part)
        options["comment"] = str(folder)
        options["wckey"] = None  # submitit's own would be refused where accounting by such keys is enforced
        options["setup"] = _setup(environment, order, package)
        jobs = [UnitJob.of(order, unit, self.layout) for unit in units]
        job_id = self._sbatch_avoiding(folder, order, options, jobs)
        return submissions.record(self.layout, folder, job_id)

    @cached_property
    def _attempts(self) -> Mapping[str, Sequence[AttemptRecord]]:
        """Those of the run, read once."""
        return read_attempts(self.layout.attempts)

    def _sbatch_avoiding(
        self, folder: Path, order: ArrayOrder, options: Mapping[str, Any], jobs: Sequence[UnitJob]
    ) -> str:
        """Submit without the nodes that had a fault of late, or with them where nothing else is left."""
        avoided = nodes_to_avoid(self._attempts, order.partition, order.retries)
        if avoided:
            try:
                return _sbatch(folder, order, {**options, "exclude": joined(order.exclude, avoided)}, jobs)
            except SetupError as error:
                if NO_SUCH_NODES not in str(error):
                    raise
        return _sbatch(folder, order, options, jobs)

    def _new_folder(self, order: ArrayOrder, part: int) -> Path:
        """submitit's files are named by job id alone, and a cluster that was set up anew counts from 1 again."""
        root = self.layout.launcher_logs
        if "%" in str(root):
            raise UserInputError(f"{root}: Slurm gives '%' in the path of a log a meaning. Choose other paths.logs.")
        with storage_faults(root):
            root.mkdir(parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(prefix=f"{order.name}.{part}.", dir=root))

    def _dependency(self, order: ArrayOrder, part: int) -> str | None:
        if order.dependency is Dependency.NONE or not order.depends_on:
            return None
        jobs: list[str] = []
        for name in order.depends_on:
            known = self._jobs[name]
            if order.dependency is Dependency.AFTERCORR:
                # Arrays of one length are split at the same places: part corresponds to part, element to element.
                jobs.append(known[part])
            elif order.element is not None:
                jobs.append(self._element(name, order.element))
            else:
                jobs += known
        return ":".join([order.dependency, *jobs])

    def _element(self, array: str, index: int) -> str:
        """One unit of an array of this submission, as Slurm names it; submitit makes a single unit a plain job."""
        part, place = divmod(index, self.max_array_size)
        job_id, units = self._jobs[array][part], split(self._orders[array].units, self.max_array_size)[part]
        return job_id if len(units) == 1 else f"{job_id}_{place}"


def _setup(environment: Path, order: ArrayOrder, package: Path) -> list[str]:
    """The first lines of a batch script: whose it is, what is done after the unit, where the unit runs."""
    strict, believe, enter = job_script.entering(environment)
    when = "always" if order.kind is Kind.MERGE else "failed"
    words = (job_script.script("epilogue.sh"), when, environment.parent, package, sys.executable)
    return [strict, believe, f". {shlex.join(map(str, (*words, order.environment.python)))}", enter]


def split(units: Sequence[UnitOrder], size: int) -> list[Sequence[UnitOrder]]:
    """`units` in parts of `size` at most."""
    return [units[start : start + size] for start in range(0, len(units), size)]


def sbatch_options(order: ArrayOrder, *, parts: int = 1, dependency: str | None = None) -> dict[str, Any]:
    """submitit's parameters for one of the `parts` of `order`; the throttle is shared among them.

    Raises:
        UserInputError: a value that cannot stand in a batch script, or a deadline of the nodes' meeting that is none.
    """
    throttle = max(1, order.throttle // parts) if order.throttle else len(order.units)
    srun_args = [f"--cpus-per-task={order.cpus_per_unit}"]  # not inherited from sbatch since Slurm 22.05
    if order.nodes > 1:
        # A node that fails tells node 0 why before it leaves, and all leave by themselves when node 0 does.
        variables = {**os.environ, **dict(order.environment.variables)}  # sbatch hands on those of who submits
        srun_args += ["--kill-on-bad-exit=0", f"--wait={math.ceil(rendezvous.deadline_s(variables)) + STRAGGLERS_S}"]
    more: dict[str, str | int | bool] = {**order.extra, "requeue": True, "kill-on-invalid-dep": "yes"}
    options = {
        "partition": order.partition,
        "time": order.time_limit_minutes,
        "nodes": order.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": order.cpus_per_unit,
        "gres": _gres(order),
        "mem": f"{math.ceil(order.memory_gib * 1024)}M" if order.memory_gib else None,
        "constraint": order.features,
        "account": order.account,
        "qos": order.qos,
        "exclude": order.exclude,
        "dependency": dependency,
        "array_parallelism": throttle,
        # A signal that is due before a short job begins comes at once, and again after every start.
        "signal_delay_s": min(SIGNAL_DELAY_S, order.time_limit_minutes * 60 // 4),
        "srun_args": srun_args,
        "additional_parameters": {key: value for key, value in more.items() if value is not False},
    }
    _refuse_unprintable(order.name, {**options, **more}.items())
    return {key: value for key, value in options.items() if value is not None}


def _gres(order: ArrayOrder) -> str | None:
    if not order.gpus_per_node:
        return None
    return f"gpu:{order.gres_type}:{order.gpus_per_node}" if order.gres_type else f"gpu:{order.gpus_per_node}"


def _refuse_unprintable(array: str, options: Iterable[tuple[str, object]]) -> None:
    """An option is a line of the batch script; a line break in its value would begin a command."""
    for key, value in options:
        if isinstance(value, str) and not value.isprintable():
            raise UserInputError(f"Array {array}: {key} = {value!r} cannot be an option: use printable characters.")


def _sbatch(folder: Path, order: ArrayOrder, options: Mapping[str, Any], jobs: Sequence[UnitJob]) -> str:
    # submitit takes 0.1 s to import, and status and cancel need none of it.
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.slurm.slurm import SlurmExecutor

    executor = SlurmExecutor(folder=folder, python=shlex.quote(order.environment.python))
    executor.update_parameters(**options)
    try:
        # submitit prints what sbatch says on failure, and raises it too.
        with storage_faults(folder), contextlib.redirect_stderr(io.StringIO()):
            submitted = executor.submit_array(jobs)
    except (FailedJobError, FailedSubmissionError) as error:
        said = (str(error).strip() or "no reason given").splitlines()[-1]
        raise SetupError(
            f"sbatch refused array {order.name} (partition {order.partition}): {said.removeprefix('sbatch: error: ')}. "
            "Correct the cluster profile and type the command again."
        ) from error
    return str(submitted[0].job_id).partition("_")[0]
