"""Cluster profiles: node classes, Slurm settings and Python environments, in one TOML file per cluster."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field, PrivateAttr, ValidationError, model_validator

from hpcq.catalog.gpus import GPU, find_gpu, gpu_names
from hpcq.core.errors import ManifestError
from hpcq.core.host_memory import GIB, host_memory_bytes
from hpcq.data import MANIFESTS
from hpcq.manifest.error_messages import to_problems, unknown_name
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
from hpcq.manifest.slurm_options import SlurmOptions, combine
from hpcq.manifest.toml_document import key_lines, read_document
from hpcq.manifest.value_origin import Source

_LOCAL_UNIT_MEMORY_GIB = 6
"""Host memory assumed per local unit: a model of a few hundred million weights in float32, plus libraries."""

Role = Literal["evaluate", "quantize", "merge", "stage"]
ROLES: tuple[Role, ...] = ("evaluate", "quantize", "merge")
"""Roles that each profile needs, and that a class has by default. 'stage' is for a class with a network."""

MIN_SUBMITTED_JOBS = 3
"""A merge that submits the next portion: its own job is still running, and submits a unit and a merge."""

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


def _one_cluster(name: str) -> str:
    if not re.fullmatch(r"[\w.-]+", name):
        raise validation_error(f"'{name}' is not the name of one cluster; jobs of a run depend on each other.")
    return name


ClusterName = Annotated[Name, AfterValidator(_one_cluster)]
SetupLines = Annotated[tuple[Annotated[NonBlankStr, AfterValidator(reject_secret_value)], ...], Field(strict=False)]


class SlurmSettings(SlurmOptions):
    """sbatch options and setup of every job on this cluster."""

    cluster: ClusterName | None = Field(
        None, description="Name of the cluster (`--clusters`), if it is not the one on which `hpcq` runs."
    )
    time_limit_minutes: PositiveInt = Field(60, description="Time limit of a job; a node class may set a shorter one.")
    max_submitted_jobs: Annotated[int, Field(ge=MIN_SUBMITTED_JOBS)] | None = Field(
        None,
        description=(
            "Maximum number of your pending and running jobs, where each element of an array counts. More units are"
            " submitted in portions: the merge of each portion submits the next."
        ),
    )
    setup: SetupLines = Field((), description="Shell lines that every job runs first, on its node.")


class LocalSettings(Section):
    """Resources of this machine that a run may use."""

    parallel_units: PositiveInt | None = Field(
        None, description="Maximum concurrent units; by default as many as this machine's cores and memory allow."
    )
    cpus_per_unit: PositiveInt = Field(1, description="Compute threads per unit.")


class GpuClass(SlurmOptions):
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
    roles: Annotated[tuple[Role, ...], Field(strict=False), AfterValidator(no_duplicates)] = Field(
        ROLES, description="Kinds of units that may run here."
    )
    throttle: PositiveInt | None = Field(
        None, description="Maximum number of elements of an array that run at once (`--array=…%N`)."
    )
    cpus_per_unit: PositiveInt | None = Field(
        None,
        description="CPU cores per unit (`--cpus-per-task`); by default in proportion to its GPUs, else 1.",
    )
    memory_gib_per_unit: PositiveFloat | None = Field(
        None,
        description="Host memory per unit, GiB; by default in proportion to its GPUs, or more if it needs more.",
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
    slurm: SlurmSettings = Field(SlurmSettings.model_construct(), description="sbatch options and setup of every job.")
    local: LocalSettings = Field(LocalSettings.model_construct(), description="Resources of this machine.")
    filesystem: FilesystemSettings = Field(
        FilesystemSettings.model_construct(), description="Read bandwidth for checkpoints."
    )
    staging: StagingSettings = Field(
        StagingSettings.model_construct(), description="Staging of models and data by `submit`."
    )
    gpu_classes: dict[Name, GpuClass] = Field(description="Node classes, by a name of your choice.")
    environments: dict[Name, EnvironmentSettings] = Field(
        {}, description="Python environments: core, transformers, vllm, vllm-cpu, or your own."
    )
    _from_shell: tuple[ShellSetting, ...] = PrivateAttr(())

    @property
    def from_shell(self) -> tuple[ShellSetting, ...]:
        """Settings that are from the submitting shell, because the profile's file has none."""
        return self._from_shell

    def options_of(self, gpu_class: str) -> SlurmOptions:
        """Return the options of the jobs of a class: its own, and those of the cluster for what it has none."""
        return combine(self.slurm, self.gpu_classes[gpu_class])

    @model_validator(mode="after")
    def _check_sections_and_roles(self) -> Self:
        for section, scheduler in (("slurm", "local"), ("local", "slurm")):
            if self.scheduler == scheduler and section in self.model_fields_set:
                raise validation_error(f"is not allowed with scheduler = '{scheduler}'.", section)
        for name in self.gpu_classes if self.scheduler == "slurm" else ():
            self._check_options(name)
        for role in ROLES:
            if not any(role in gpu_class.roles for gpu_class in self.gpu_classes.values()):
                raise validation_error(f"no class has the role '{role}'; add it to one of them.", "gpu_classes")
        return self

    def _check_options(self, name: str) -> None:
        """Refuse options of a class that contradict each other."""
        offer, options = self.gpu_classes[name], self.options_of(name)
        if not offer.gpus_per_node or options.gpu_option != "none":
            return
        if options.memory_option == "mem-per-gpu":
            where = ("gpu_classes", name) if offer.memory_option else ("slurm",)
            raise validation_error(
                "'mem-per-gpu' requires a request for GPUs, and gpu_option is 'none'; use 'mem' or 'none'.",
                *where,
                "memory_option",
            )
        if offer.gres_type is not None:
            raise validation_error(
                "is not used with gpu_option = 'none'; use features.", "gpu_classes", name, "gres_type"
            )


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
    """Use values that users set in their shell for all jobs, if a Slurm profile has none; the lock file records them.

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
