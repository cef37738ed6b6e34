"""Checks of a Slurm cluster: its settings, the classes of a profile, and the arrays of a plan."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hpcq.core.errors import SetupError
from hpcq.core.host_memory import GIB
from hpcq.doctor.finding import Finding, fail, ok, warning
from hpcq.launch.array_spec import ArraySpec
from hpcq.launch.slurm_launcher import sbatch_options
from hpcq.launch.submission_files import write_script
from hpcq.manifest.profiles import GpuClass, Profile
from hpcq.slurm import sacctmgr
from hpcq.slurm.client import parse_setting, run_client
from hpcq.slurm.partitions import Partition, partitions
from hpcq.slurm.sinfo import NodeRow, node_rows

SECTION = "slurm"
CLIENTS = ("sbatch", "srun", "squeue", "scontrol", "sinfo", "scancel")
SMALL_ARRAY = 100


def cluster_findings(*, is_needed: bool) -> Iterator[Finding]:
    """Check the clients, and the settings of the cluster on which a run's recovery depends.

    Args:
        is_needed: A machine without Slurm is a failure.
    """
    missing = [name for name in CLIENTS if shutil.which(name) is None]
    if missing == list(CLIENTS) and not is_needed:
        yield ok(SECTION, "this machine has no Slurm: runs use cluster.profile=local.")
        return
    if missing:
        yield fail(
            SECTION,
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not on the PATH of this machine.",
            "Log in to a login node of the cluster, or use cluster.profile=local.",
        )
        return
    settings = run_client("scontrol", "show", "config")
    name, version = (parse_setting(settings, key) or "?" for key in ("ClusterName", "SLURM_VERSION"))
    yield ok(SECTION, f"cluster {name}, Slurm {version}.")
    yield from _preemption(settings)
    size = int(parse_setting(settings, "MaxArraySize") or 0)
    text = f"MaxArraySize is {size}"
    yield ok(SECTION, f"{text}." if size > SMALL_ARRAY else f"{text}: larger arrays are submitted in several parts.")
    if parse_setting(settings, "JobRequeue") == "0":
        yield warning(
            SECTION,
            "JobRequeue is 0: if the site refuses `--requeue`, a job whose node fails is not started again.",
            "Type `hpcq resume RUN` after a failure of a node.",
        )
    if "none" in (parse_setting(settings, "AccountingStorageType") or "none"):
        yield ok(SECTION, "no accounting: hours are those that hpcq's own attempts record.")
    limit = sacctmgr.max_submitted_jobs(name)
    if limit is not None:
        yield ok(SECTION, f"you may submit {limit} jobs at once; larger runs need slurm.max_submitted_jobs = {limit}.")


def _preemption(settings: str) -> Iterator[Finding]:
    mode = parse_setting(settings, "PreemptMode") or "OFF"
    if mode == "OFF":
        yield ok(SECTION, "jobs are not preempted.")
    elif "preempt_send_user_signal" in (parse_setting(settings, "SlurmctldParameters") or ""):
        yield ok(SECTION, f"jobs are preempted ({mode}), with a signal before, so nothing is lost.")
    else:
        yield ok(
            SECTION,
            f"jobs are preempted ({mode}) without a signal before: up to evaluate.flush_interval_s of work is lost.",
        )


def class_findings(profile: Profile) -> Iterator[Finding]:
    """Check each class of a profile against the partitions and nodes of the cluster."""
    known, rows = partitions(), node_rows()
    default = next((one.name for one in known.values() if one.is_default), None)
    for name, gpu_class in profile.gpu_classes.items():
        partition = known.get(gpu_class.partition or default or "")
        if partition is None:
            yield fail(
                SECTION,
                f"{name}: there is no partition '{gpu_class.partition or 'default'}'.",
                f"Set gpu_classes.{name}.partition to one of {', '.join(sorted(known))}.",
            )
            continue
        yield from _partition_findings(name, gpu_class, partition)
        yield from _node_findings(name, gpu_class, [row for row in rows if row.partition == partition.name])


def _partition_findings(name: str, gpu_class: GpuClass, partition: Partition) -> Iterator[Finding]:
    if partition.state != "UP":
        yield fail(
            SECTION,
            f"{name}: partition '{partition.name}' is {partition.state}.",
            f"Set gpu_classes.{name}.partition to another one, or wait.",
        )
    limit, own = partition.max_minutes, gpu_class.max_minutes
    if limit is not None and (own is None or own > limit):
        yield warning(
            SECTION,
            f"{name}: partition '{partition.name}' allows {limit} min, the profile {own or 'any time limit'}.",
            f"Set gpu_classes.{name}.max_minutes = {limit}.",
        )


def _node_findings(name: str, gpu_class: GpuClass, rows: Sequence[NodeRow]) -> Iterator[Finding]:
    """Compare what a class promises with the nodes of its partition that have its GPUs."""
    key = f"gpu_classes.{name}"
    fitting = [row for row in rows if gpu_class.gres_type in (None, row.gpu_type)]
    if gpu_class.gpus_per_node and not fitting:
        found = sorted({row.gpu_type or "GPUs without a type" for row in rows if row.gpus}) or ["no GPUs"]
        yield fail(
            SECTION,
            f"{name}: no node of its partition has GPUs of the type '{gpu_class.gres_type}', but {', '.join(found)}.",
            f"Correct {key}.gres_type.",
        )
        return
    enough = [row for row in fitting if row.gpus >= gpu_class.gpus_per_node and row.cpus >= gpu_class.cpus_per_node]
    enough = [row for row in enough if row.memory_mib * 2**20 >= gpu_class.memory_gib * GIB]
    if not enough:
        largest = max(fitting, key=lambda row: (row.gpus, row.memory_mib, row.cpus), default=None)
        has = (
            f"{largest.gpus} GPUs, {largest.cpus} cores and {largest.memory_mib // 1024} GiB" if largest else "no nodes"
        )
        yield fail(
            SECTION,
            f"{name}: no node has {gpu_class.gpus_per_node} GPUs, {gpu_class.cpus_per_node} cores and"
            f" {gpu_class.memory_gib:g} GiB; the largest has {has}.",
            f"Correct gpus_per_node, cpus_per_node or memory_gib of {key} (`hpcq init --from-sinfo` writes them).",
        )
        return
    usable = {row.node for row in enough if row.is_usable}
    if not usable:
        yield fail(
            SECTION,
            f"{name}: all {len({row.node for row in enough})} nodes are drained, down or reserved.",
            "Ask the administrators, or use another class.",
        )
    elif len(usable) < gpu_class.nodes:
        yield warning(
            SECTION,
            f"{name}: {len(usable)} nodes are in service, the profile has {gpu_class.nodes}.",
            f"Set {key}.nodes = {len(usable)}, if this lasts: the plan expects them.",
        )
    else:
        yield ok(SECTION, f"{name}: {len(usable)} nodes in service.")


def array_findings(arrays: Iterable[ArraySpec]) -> Iterator[Finding]:
    """Ask Slurm whether it would accept each array of a plan, with all of its options (`sbatch --test-only`)."""
    for array in arrays:
        with tempfile.TemporaryDirectory() as folder:
            script = write_script(
                Path(folder),
                python=array.environment.python,
                options=sbatch_options(array),
                elements=len(array.units),
            )
            try:
                run_client("sbatch", "--test-only", str(script))
            except SetupError as error:
                yield fail(
                    SECTION,
                    f"array {array.name}: Slurm would reject it: {_reason(str(error))}",
                    "Correct the class or the options in the cluster profile.",
                )
            else:
                yield ok(SECTION, f"array {array.name}: Slurm would accept it.")


def _reason(message: str) -> str:
    return re.sub(r"^`sbatch` failed: (?:sbatch: error: )?(?:allocation failure: )?", "", message)
