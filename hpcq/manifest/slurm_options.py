"""Options of sbatch that a profile can set: for all jobs of a cluster, or for those of one node class."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator

from hpcq.manifest.error_messages import format_value
from hpcq.manifest.field_types import Name, PositiveInt, Section, reject_secret_value, validation_error

MemoryOption = Literal["mem", "mem-per-cpu", "mem-per-gpu", "none"]
GpuOption = Literal["gres", "gpus", "gpus-per-node", "none"]

_SBATCH_OPTION = re.compile(r"[a-z][a-z0-9-]*")
_EXPORTED = re.compile(r"(?!(NONE|NIL)$)[A-Za-z_]\w*(=[^,]*)?")
_MEMORY_KEY = "gpu_classes.NAME.memory_gib_per_unit"
_MANAGED_OPTIONS: dict[str, str | None] = {
    "account": "slurm.account",
    "array": "gpu_classes.NAME.throttle",
    "cluster": "slurm.cluster",
    "clusters": "slurm.cluster",
    "comment": "slurm.comment",
    "constraint": "gpu_classes.NAME.features",
    "cpus-per-gpu": "gpu_classes.NAME.cpus_per_unit",
    "cpus-per-task": "gpu_classes.NAME.cpus_per_unit",
    "exclude": "slurm.exclude",
    "export": "slurm.export",
    "export-file": "environments.NAME.variables",
    "gpus": "slurm.gpu_option = 'gpus'",
    "gpus-per-node": "slurm.gpu_option = 'gpus-per-node'",
    "gpus-per-socket": "slurm.gpu_option",
    "gpus-per-task": "slurm.gpu_option",
    "gres": "gpu_classes.NAME.gres_type",
    "mem": _MEMORY_KEY,
    "mem-per-cpu": f"slurm.memory_option = 'mem-per-cpu' and {_MEMORY_KEY}",
    "mem-per-gpu": f"slurm.memory_option = 'mem-per-gpu' and {_MEMORY_KEY}",
    "partition": "gpu_classes.NAME.partition",
    "qos": "slurm.qos",
    "time": "slurm.time_limit_minutes",
    "tres-per-task": "slurm.gpu_option",
    "begin": None,
    "chdir": None,
    "dependency": None,
    "error": None,
    "hold": None,
    "job-name": None,
    "kill-on-invalid-dep": None,
    "no-requeue": None,
    "nodes": None,
    "ntasks": None,
    "ntasks-per-gpu": None,
    "ntasks-per-node": None,
    "open-mode": None,
    "output": None,
    "parsable": None,
    "requeue": None,
    "signal": None,
    "test-only": None,
    "wait": None,
    "wrap": None,
}
"""sbatch options that hpcq sets or that conflict with those, each with the profile's key for it, if there is one."""


def _extra_option(name: str) -> str:
    if not _SBATCH_OPTION.fullmatch(name):
        raise validation_error("is not a valid long option of sbatch, such as 'reservation'.")
    # sbatch accepts abbreviations: 'clus' is --clusters. None of its other options is a prefix of one in the table.
    managed = [name] if name in _MANAGED_OPTIONS else [one for one in _MANAGED_OPTIONS if one.startswith(name)]
    if managed:
        key = _MANAGED_OPTIONS[managed[0]]
        raise validation_error("is set by hpcq; " + (f"use {key}." if key else "remove it."))
    return name


def _exported_names(value: str) -> str:
    """Reject a value of `--export` that sbatch would read as something else than the names of variables."""
    names = value.split(",")
    if value not in ("NONE", "NIL", "ALL") and not all(_EXPORTED.fullmatch(name) for name in names):
        raise validation_error(f"'{value}' is not 'NONE', and not a list of variables such as 'HOME,PATH,LANG=C'.")
    return value


def _extra_value(value: object) -> str | int | bool:
    if not isinstance(value, str | int):
        raise validation_error(f"must be a string, an integer or a boolean, not {format_value(value)}.")
    return reject_secret_value(value) if isinstance(value, str) else value


class SlurmOptions(Section):
    """Options of sbatch. A value of a node class replaces that of the cluster; `extra` is merged."""

    account: Name | None = Field(None, description="Slurm account to charge (`--account`).")
    qos: Name | None = Field(None, description="Quality of service (`--qos`).")
    features: Name | None = Field(None, description="Node features to request (`--constraint`).")
    exclude: Name | None = Field(None, description="Nodes to avoid, in Slurm's notation (`--exclude`).")
    comment: Name | None = Field(
        None, description="Text that the site requires in the job's comment (`--comment`); hpcq appends its own."
    )
    export: Annotated[Name, AfterValidator(reject_secret_value), AfterValidator(_exported_names)] | None = Field(
        None,
        description="Variables of the submitting shell that jobs get (`--export`): `NONE`, or names; by default all.",
    )
    memory_option: MemoryOption | None = Field(
        None, description="Option that requests host memory, or `none`: jobs get what Slurm gives; by default `mem`."
    )
    gpu_option: GpuOption | None = Field(
        None, description="Option that requests GPUs, or `none`: jobs get whole nodes; by default `gres`."
    )
    max_array_size: PositiveInt | None = Field(
        None, description="Maximum number of elements of an array, if it is less than Slurm's MaxArraySize."
    )
    extra: dict[
        Annotated[str, AfterValidator(_extra_option)], Annotated[str | int | bool, PlainValidator(_extra_value)]
    ] = Field(
        {},
        description="More sbatch options, by long name (`reservation`, `wckey`, `licenses`, …), except those that hpcq"
        " sets.",
    )


def combine(cluster: SlurmOptions, gpu_class: SlurmOptions) -> SlurmOptions:
    """Return the options of the jobs of a class, with the defaults of `memory_option` and `gpu_option`."""
    found: dict[str, Any] = {"memory_option": "mem", "gpu_option": "gres"}
    for one in (cluster, gpu_class):
        values = {name: getattr(one, name) for name in SlurmOptions.model_fields}
        found |= {name: value for name, value in values.items() if value is not None}
    return SlurmOptions.model_construct(**{**found, "extra": {**cluster.extra, **gpu_class.extra}})
