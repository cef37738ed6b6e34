"""Cluster profiles: node classes, Slurm settings and Python environments, in one TOML file per cluster."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field, PlainValidator, PrivateAttr, ValidationError, model_validator

from hpcq.catalog.gpus import GPU, find_gpu, gpu_names
from hpcq.core.errors import ManifestError
from hpcq.core.host_memory import GIB, host_memory_bytes
from hpcq.data import MANIFESTS
from hpcq.manifest.error_messages import format_value, to_problems, unknown_name
from hpcq.manifest.field_types import (
    Name,
    NonBlankStr,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    UniqueStrs,
    no_duplicates,
    reject_secret_name,
    reject_secret_value,
    validation_error,
)
from hpcq.manifest.fs_access import is_file
from hpcq.manifest.toml_document import key_lines, read_document
from hpcq.manifest.value_origin import Source

_LOCAL_UNIT_MEMORY_GIB = 6
"""Host memory assumed per local unit: a model of a few hundred million weights in float32, plus libraries."""

Role = Literal["evaluate", "quantize", "merge", "stage"]
ROLES: tuple[Role, ...] = ("evaluate", "quantize", "merge")
"""Roles that each profile needs, and that a class has by default. 'stage' is for a class with a network."""

_SBATCH_OPTION = re.compile(r"[a-z][a-z0-9-]*")
_MANAGED_OPTIONS: dict[str, str | None] = {
    "account": "slurm.account",
    "array": "gpu_classes.NAME.throttle",
    "constraint": "gpu_classes.NAME.features",
    "cpus-per-task": "gpu_classes.NAME.cpus_per_unit",
    "exclude": "slurm.exclude",
    "gres": "gpu_classes.NAME.gres_type",
    "mem": "gpu_classes.NAME.memory_gib_per_unit",
    "partition": "gpu_classes.NAME.partition",
    "qos": "slurm.qos",
    "time": "slurm.time_limit_minutes",
    "chdir": None,
    "comment": None,
    "dependency": None,
    "error": None,
    "job-name": None,
    "kill-on-invalid-dep": None,
    "no-requeue": None,
    "nodes": None,
    "ntasks": None,
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


_SHELL_SETTINGS = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos",
    "SBATCH_RESERVATION": "reservation",
}
"""Variables of sbatch that people set for all of their jobs, and the profile's keys that replace them."""


def _known_gpu(name: str) -> str:
    if find_gpu(name) is None:
        raise validation_error(unknown_name("GPU", name, gpu_names()))
    return name


def _extra_option(name: str) -> str:
    if not _SBATCH_OPTION.fullmatch(name):
        raise validation_error("is not a valid long option of sbatch, such as 'reservation'.")
    if name in _MANAGED_OPTIONS:
        key = _MANAGED_OPTIONS[name]
        raise validation_error("is set by hpcq; " + (f"use {key}." if key else "remove it."))
    return name


def _extra_value(value: object) -> str | int | bool:
    if not isinstance(value, str | int):
        raise validation_error(f"must be a string, an integer or a boolean, not {format_value(value)}.")
    return reject_secret_value(value) if isinstance(value, str) else value


SetupLines = Annotated[tuple[Annotated[NonBlankStr, AfterValidator(reject_secret_value)], ...], Field(strict=False)]


class SlurmSettings(Section):
    """sbatch options and setup of every job on this cluster."""

    account: Name | None = Field(None, description="Slurm account to charge (`--account`).")
    qos: Name | None = Field(None, description="Quality of service (`--qos`).")
    time_limit_minutes: PositiveInt = Field(60, description="Time limit of a job; a node class may set a shorter one.")
    exclude: Name | None = Field(None, description="Nodes to avoid, in Slurm's notation (`--exclude`).")
    setup: SetupLines = Field((), description="Shell lines that every job runs first, on its node.")
    extra: dict[
        Annotated[str, AfterValidator(_extra_option)], Annotated[str | int | bool, PlainValidator(_extra_value)]
    ] = Field({}, description="More sbatch options, by long name, except those that hpcq sets.")


class LocalSettings(Section):
    """Resources of this machine that a run may use."""

    parallel_units: PositiveInt | None = Field(
        None, description="Maximum concurrent units; by default as many as this machine's cores and memory allow."
    )
    cpus_per_unit: PositiveInt = Field(1, description="Compute threads per unit.")


class GpuClass(Section):
    """A class of identical nodes, and the resources that one unit may request. Also used for nodes without GPUs."""

    partition: Name | None = Field(None, description="Slurm partition; by default the cluster's own default.")
    gpu: Annotated[str, AfterValidator(_known_gpu)] | None = Field(
        None, description="The GPU's name in the catalog; required if the nodes have GPUs."
    )
    gres_type: Name | None = Field(None, description="The GPU's type in Slurm's `--gres=gpu:<type>:<count>`.")
    nodes: PositiveInt = Field(1, description="Number of nodes.")
    gpus_per_node: NonNegativeInt = Field(0, description="GPUs per node; 0 for nodes without GPUs.")
    cpus_per_node: PositiveInt = Field(description="CPU cores per node.")
    memory_gib: PositiveFloat = Field(description="Host memory per node, GiB.")
    features: Name | None = Field(None, description="Node features to request (`--constraint`).")
    roles: Annotated[tuple[Role, ...], Field(strict=False), AfterValidator(no_duplicates)] = Field(
        ROLES, description="Kinds of units that may run here."
    )
    throttle: PositiveInt | None = Field(
        None, description="Maximum tasks of one array that run at once (`--array=…%N`)."
    )
    cpus_per_unit: PositiveInt | None = Field(
        None,
        description="CPU cores per unit (`--cpus-per-task`); by default in proportion to its GPUs, else 1.",
    )
    memory_gib_per_unit: PositiveFloat | None = Field(
        None,
        description="Host memory per unit, GiB (`--mem`); by default in proportion to its GPUs, else Slurm's default.",
    )
    max_minutes: PositiveInt | None = Field(None, description="Maximum time limit of the partition.")

    @model_validator(mode="after")
    def _check_resources(self) -> Self:
        if self.gpus_per_node and self.gpu is None:
            raise validation_error(f"is missing: name the GPU of this class, one of {', '.join(gpu_names())}.", "gpu")
        if self.gpu is not None and not self.gpus_per_node:
            raise validation_error("is missing: give the number of GPUs per node.", "gpus_per_node")
        if self.cpus_per_unit is not None and self.cpus_per_unit > self.cpus_per_node:
            raise validation_error(f"must not exceed cpus_per_node ({self.cpus_per_node}).", "cpus_per_unit")
        if self.memory_gib_per_unit is not None and self.memory_gib_per_unit > self.memory_gib:
            raise validation_error(f"must not exceed memory_gib ({self.memory_gib:g}).", "memory_gib_per_unit")
        return self

    @property
    def gpu_spec(self) -> GPU | None:
        """The GPU's row in the catalog; None for a class without GPUs."""
        return None if self.gpu is None else find_gpu(self.gpu)


class EnvironmentSettings(Section):
    """Activation of a Python environment on a node."""

    python: Name | None = Field(None, description="Path of the interpreter; by default the one in hpcq's cache.")
    modules: UniqueStrs = Field((), description="Environment modules to load (`module load`), in order.")
    setup: SetupLines = Field((), description="Shell lines to run after the modules are loaded.")
    variables: dict[Annotated[NonBlankStr, AfterValidator(reject_secret_name)], str] = Field(
        {}, description="Environment variables to set."
    )


class StagingSettings(Section):
    """Staging of models and data from the hub by `submit`."""

    submit_limit_gib: NonNegativeFloat = Field(
        5.0, description="Maximum GiB that `submit` stages on its own host; more is staged by a job or `hpcq stage`."
    )


class FilesystemSettings(Section):
    """Read bandwidth for checkpoints, used for estimates."""

    read_gb_per_s: PositiveFloat | None = Field(
        None, description="Read bandwidth per node, 10^9 bytes/s; by default 0.37 (a slow network file system)."
    )
    total_read_gb_per_s: PositiveFloat | None = Field(
        None, description="Maximum read bandwidth of all nodes of a unit together, 10^9 bytes/s."
    )


class ShellSetting(NamedTuple):
    """A setting of a profile whose value is from a variable of the submitting shell."""

    key: str
    variable: str
    value: str

    def __str__(self) -> str:
        return f"{self.key} = '{self.value}' is from {self.variable}, because the profile has none."


class Profile(Section):
    """A cluster, or this machine."""

    name: Name = Field(description="Name of the cluster, for display.")
    scheduler: Literal["local", "slurm"] = Field(description="`slurm`, or `local` for this machine.")
    slurm: SlurmSettings = Field(SlurmSettings(), description="sbatch options and setup of every job.")
    local: LocalSettings = Field(LocalSettings(), description="Resources of this machine.")
    filesystem: FilesystemSettings = Field(FilesystemSettings(), description="Read bandwidth for checkpoints.")
    staging: StagingSettings = Field(StagingSettings(), description="Staging of models and data by `submit`.")
    gpu_classes: dict[Name, GpuClass] = Field(description="Node classes, by a name of your choice.")
    environments: dict[Name, EnvironmentSettings] = Field(
        {}, description="Python environments: core, transformers, vllm, vllm-cpu, or your own."
    )
    _from_shell: tuple[ShellSetting, ...] = PrivateAttr(())

    @property
    def from_shell(self) -> tuple[ShellSetting, ...]:
        """Settings that are from the submitting shell, because the profile's file has none."""
        return self._from_shell

    @model_validator(mode="after")
    def _check_sections_and_roles(self) -> Self:
        for section, scheduler in (("slurm", "local"), ("local", "slurm")):
            if self.scheduler == scheduler and section in self.model_fields_set:
                raise validation_error(f"is not allowed with scheduler = '{scheduler}'.", section)
        for role in ROLES:
            if not any(role in gpu_class.roles for gpu_class in self.gpu_classes.values()):
                raise validation_error(f"no class has the role '{role}'; add it to one of them.", "gpu_classes")
        return self


def load_profile(name_or_path: str, relative_to: Path) -> Profile:
    """Load a cluster profile.

    Args:
        name_or_path: 'local', 'auto' or the path of a TOML file. A relative path is searched in `relative_to`, the
            working directory, and the checkout's manifests/clusters/ and manifests/, in this order.
        relative_to: the manifest's folder.

    Raises:
        ManifestError: the profile does not exist or is invalid; one sentence per problem.
    """
    if name_or_path == "auto" and shutil.which("sbatch"):
        raise ManifestError(
            ["'auto' found Slurm's sbatch but no profile. Create one with `hpcq init --from-sinfo` and give its path."]
        )
    if name_or_path in ("local", "auto"):
        return local_profile()
    path = _find_profile(name_or_path, relative_to)
    text, document = read_document(path)
    source = Source(path=path, lines=key_lines(text))
    try:
        profile = Profile.model_validate(document)
    except ValidationError as error:
        raise ManifestError([source.message(*problem) for problem in to_problems(error, Profile)]) from None
    return _with_shell_settings(_with_parallel_units(profile), os.environ)


def local_profile() -> Profile:
    """Return a profile of this machine: one class, named 'cpu', with all its cores and memory."""
    memory_gib = int(host_memory_bytes() / GIB * 10) / 10
    cpu = GpuClass(cpus_per_node=_core_count(), memory_gib=memory_gib)
    return _with_parallel_units(Profile(name="local", scheduler="local", gpu_classes={"cpu": cpu}))


def _with_parallel_units(profile: Profile) -> Profile:
    """Fill in `local.parallel_units` of a local profile, so that a lock file records it."""
    if profile.scheduler != "local" or profile.local.parallel_units is not None:
        return profile
    units = _parallel_units(profile.local.cpus_per_unit)
    return profile.model_copy(update={"local": profile.local.model_copy(update={"parallel_units": units})})


def _with_shell_settings(profile: Profile, variables: Mapping[str, str]) -> Profile:
    """Fill in what users set once in their shell for all jobs, where a Slurm profile has no value; a lock records it.

    Raises:
        ManifestError: A value is not printable.
    """
    if profile.scheduler != "slurm":
        return profile
    found = {name: variables[name] for name in _SHELL_SETTINGS if variables.get(name, "").strip()}
    if bad := [name for name, value in found.items() if not value.isprintable()]:
        raise ManifestError([f"{bad[0]} = {found[bad[0]]!r} contains unprintable characters: correct the variable."])
    slurm, classes, used = profile.slurm, profile.gpu_classes, []
    for name, value in found.items():
        key = _SHELL_SETTINGS[name]
        if key == "partition":
            without = [label for label, one in classes.items() if one.partition is None]
            classes = classes | {label: classes[label].model_copy(update={key: value}) for label in without}
            used += [ShellSetting(f"gpu_classes.{label}.partition", name, value) for label in without]
        elif key == "reservation" and key not in slurm.extra:
            slurm = slurm.model_copy(update={"extra": {**slurm.extra, key: value}})
            used.append(ShellSetting("slurm.extra.reservation", name, value))
        elif key in ("account", "qos") and getattr(slurm, key) is None:
            slurm = slurm.model_copy(update={key: value})
            used.append(ShellSetting(f"slurm.{key}", name, value))
    filled = profile.model_copy(update={"slurm": slurm, "gpu_classes": classes})
    filled._from_shell = tuple(used)  # noqa: SLF001  # the model is frozen, and this is no field
    return filled


def _find_profile(name: str, relative_to: Path) -> Path:
    path = Path(name).expanduser()
    for folder in (relative_to, Path(), MANIFESTS / "clusters", MANIFESTS):
        if is_file(folder / path):
            return folder / path
    shipped = [str(other.relative_to(MANIFESTS)) for other in sorted(MANIFESTS.glob("clusters/*.toml"))]
    message = unknown_name("profile", name, ("local", "auto", *shipped))
    if path.suffix == ".toml":
        message += f" To write a profile of this cluster, run `hpcq init --from-sinfo {name}`."
    raise ManifestError([message])


def _core_count() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def _parallel_units(cpus_per_unit: int) -> int:
    """Return the number of units that this machine can run at once, at least one."""
    return max(1, min(_core_count() // cpus_per_unit, int(host_memory_bytes() / GIB // _LOCAL_UNIT_MEMORY_GIB)))
