"""Cluster profiles: what a cluster offers, in its administrators' words. One TOML file a cluster, and one built in.

Knows Slurm's and the GPUs' vocabulary; knows nothing of models, tasks or plans.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PlainValidator, ValidationError, model_validator

from hpcq.catalog.gpus import GPU, find_gpu, gpu_names
from hpcq.core.errors import ManifestError
from hpcq.manifest import host
from hpcq.manifest.error_messages import problems_of, shown
from hpcq.manifest.field_types import Count, CountOrNone, Names, Positive, Section, Text, distinct, refusal
from hpcq.manifest.fs_access import is_file
from hpcq.manifest.secret_names import no_secret, no_secret_within
from hpcq.manifest.source import Source
from hpcq.manifest.suggestions import unknown_name
from hpcq.manifest.toml_positions import locate
from hpcq.manifest.toml_reader import read_document

_SHIPPED = Path(__file__).resolve().parents[2] / "manifests"
"""The profiles that the checkout brings."""

Role = Literal["evaluate", "quantize", "merge"]
ROLES: tuple[Role, ...] = ("evaluate", "quantize", "merge")

_SBATCH_OPTION = re.compile(r"[a-z][a-z0-9-]*")
_OUR_OPTIONS: dict[str, str | None] = {
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
"""What hpcq gives to sbatch, or what would undo that; each with the profile's key for it, if there is one."""


def _known_gpu(name: str) -> str:
    if find_gpu(name) is None:
        raise refusal(unknown_name("GPU", name, gpu_names()))
    return name


def _free_option(name: str) -> str:
    if not _SBATCH_OPTION.fullmatch(name):
        raise refusal("is no long option of sbatch, such as 'reservation'.")
    if name in _OUR_OPTIONS:
        key = _OUR_OPTIONS[name]
        raise refusal("is an option that hpcq sets itself; " + (f"use {key}." if key else "leave it out."))
    return name


def _option_value(value: object) -> str | int | bool:
    if not isinstance(value, str | int):
        raise refusal(f"must be text, a whole number, true or false, not {shown(value)}.")
    return no_secret_within(value) if isinstance(value, str) else value


SetupLines = Annotated[tuple[Annotated[Text, AfterValidator(no_secret_within)], ...], Field(strict=False)]


class SlurmSettings(Section):
    """What every job of this cluster is submitted with."""

    account: Text | None = Field(None, description="Slurm account that pays (`--account`).")
    qos: Text | None = Field(None, description="Quality of service (`--qos`).")
    time_limit_minutes: Count = Field(60, description="Time limit of a job where its GPU class states no shorter one.")
    exclude: Text | None = Field(None, description="Nodes never to use, in Slurm's notation (`--exclude`).")
    setup: SetupLines = Field((), description="Shell lines that every job of this cluster runs first, on its node.")
    extra: dict[
        Annotated[str, AfterValidator(_free_option)], Annotated[str | int | bool, PlainValidator(_option_value)]
    ] = Field({}, description="Further sbatch options, by their long names; not those that hpcq sets itself.")


class LocalSettings(Section):
    """How much of this machine a run may use."""

    parallel_units: Count | None = Field(
        None, description="Units at once; by default as many as this machine's cores and memory can hold."
    )
    cpus_per_unit: Count = Field(1, description="Threads that one unit computes with.")


class GpuClass(Section):
    """A kind of node, with what one unit may take of it. No GPUs a node makes it a class for CPUs."""

    partition: Text | None = Field(None, description="Slurm partition; by default the cluster's own default.")
    gpu: Annotated[str, AfterValidator(_known_gpu)] | None = Field(
        None, description="The GPU's name in the catalog; required where a node has GPUs."
    )
    gres_type: Text | None = Field(None, description="The GPU's type in Slurm's `--gres=gpu:<type>:<count>`.")
    nodes: Count = Field(1, description="How many such nodes there are.")
    gpus_per_node: CountOrNone = Field(0, description="GPUs of a node; 0 is a class for CPUs.")
    cpus_per_node: Count = Field(description="CPU cores of a node.")
    memory_gib: Positive = Field(description="Host memory of a node, GiB.")
    features: Text | None = Field(None, description="Node features to ask for (`--constraint`).")
    roles: Annotated[tuple[Role, ...], Field(strict=False), AfterValidator(distinct)] = Field(
        ROLES, description="What may run here: evaluate, quantize, merge."
    )
    throttle: Count | None = Field(None, description="Elements of one array that run at once, at most.")
    cpus_per_unit: Count | None = Field(
        None, description="CPU cores that a unit asks for; by default its share of the node by GPUs, and 1 without."
    )
    memory_gib_per_unit: Positive | None = Field(
        None,
        description="Host memory that a unit asks for, GiB; by default its share by GPUs, without them Slurm's own.",
    )
    max_minutes: Count | None = Field(None, description="The longest time limit that this class allows.")

    @model_validator(mode="after")
    def _gpus_have_a_kind(self) -> Self:
        if self.gpus_per_node and self.gpu is None:
            raise refusal(f"is missing: say which GPU the class has, one of {', '.join(gpu_names())}.", "gpu")
        if self.gpu is not None and not self.gpus_per_node:
            raise refusal("is missing: a class with a GPU says how many a node has.", "gpus_per_node")
        if self.cpus_per_unit is not None and self.cpus_per_unit > self.cpus_per_node:
            raise refusal(f"must not be above cpus_per_node ({self.cpus_per_node}).", "cpus_per_unit")
        if self.memory_gib_per_unit is not None and self.memory_gib_per_unit > self.memory_gib:
            raise refusal(f"must not be above memory_gib ({self.memory_gib:g}).", "memory_gib_per_unit")
        return self

    @property
    def device(self) -> GPU | None:
        """The catalog's row for the GPU; None for a class for CPUs."""
        return None if self.gpu is None else find_gpu(self.gpu)


class EnvironmentSettings(Section):
    """How a node comes to a Python environment."""

    python: Text | None = Field(None, description="Path of the interpreter; by default the one that hpcq made.")
    modules: Names = Field((), description="Environment modules to load (`module load`), in order.")
    setup: SetupLines = Field((), description="Shell lines to run after the modules are loaded.")
    variables: dict[Annotated[Text, AfterValidator(no_secret)], str] = Field(
        {}, description="Environment variables to set."
    )


class FilesystemSettings(Section):
    """How fast checkpoints are read, for the planner's estimates."""

    read_gb_per_s: Positive | None = Field(
        None, description="10^9 bytes a second that one node reads; by default 0.37, a slow network file system's."
    )
    total_read_gb_per_s: Positive | None = Field(
        None, description="10^9 bytes a second that all nodes of a unit read together, at most."
    )


class Profile(Section):
    """A cluster, or this machine."""

    name: Text = Field(description="The cluster's name, for people.")
    scheduler: Literal["local", "slurm"] = Field(description="Who runs the jobs: slurm, or local (this machine).")
    slurm: SlurmSettings = Field(SlurmSettings(), description="What every job is submitted with.")
    local: LocalSettings = Field(LocalSettings(), description="How much of this machine a run may use.")
    filesystem: FilesystemSettings = Field(FilesystemSettings(), description="How fast checkpoints are read.")
    gpu_classes: dict[Text, GpuClass] = Field(description="The kinds of nodes, by names of your own.")
    environments: dict[Text, EnvironmentSettings] = Field(
        {}, description="How a node comes to a Python environment: core, transformers, vllm, or one of your own."
    )

    @model_validator(mode="after")
    def _every_role_has_a_place(self) -> Self:
        for section, scheduler in (("slurm", "local"), ("local", "slurm")):
            if self.scheduler == scheduler and section in self.model_fields_set:
                raise refusal(f"has no meaning where scheduler = '{scheduler}'.", section)
        for role in ROLES:
            if not any(role in gpu_class.roles for gpu_class in self.gpu_classes.values()):
                raise refusal(f"no class has the role '{role}'; add it to the roles of one.", "gpu_classes")
        return self


def load_profile(name_or_path: str, relative_to: Path) -> Profile:
    """The profile 'local' or 'auto', or the one in the TOML file that `name_or_path` names.

    A path is sought in `relative_to` (the manifest's folder), the working directory, and the checkout's
    manifests/clusters/ and manifests/.

    Raises:
        ManifestError: there is no such profile, or it is wrong; one sentence a problem.
    """
    if name_or_path == "auto" and shutil.which("sbatch"):
        raise ManifestError(
            ["'auto' found Slurm's sbatch but no profile; `hpcq init --from-sinfo` writes one: name its path."]
        )
    if name_or_path in ("local", "auto"):
        return local_profile()
    path = _find(name_or_path, relative_to)
    text, document = read_document(path)
    source = Source(path=path, lines=locate(text))
    try:
        profile = Profile.model_validate(document)
    except ValidationError as error:
        raise ManifestError([source.problem(*problem) for problem in problems_of(error, Profile)]) from None
    return _with_parallel_units(profile)


def local_profile() -> Profile:
    """This machine, all its cores and memory, as one class named 'cpu'."""
    cpu = GpuClass(cpus_per_node=host.core_count(), memory_gib=host.memory_gib())
    return _with_parallel_units(Profile(name="local", scheduler="local", gpu_classes={"cpu": cpu}))


def _with_parallel_units(profile: Profile) -> Profile:
    """A local profile says how many units run at once, so that a lock of it does too."""
    if profile.scheduler != "local" or profile.local.parallel_units is not None:
        return profile
    units = host.parallel_units(profile.local.cpus_per_unit)
    return profile.model_copy(update={"local": profile.local.model_copy(update={"parallel_units": units})})


def _find(name: str, relative_to: Path) -> Path:
    path = Path(name).expanduser()
    places = (relative_to, Path(), _SHIPPED / "clusters", _SHIPPED)
    for place in places:
        if is_file(place / path):
            return place / path
    shipped = [str(other.relative_to(_SHIPPED)) for other in sorted(_SHIPPED.glob("clusters/*.toml"))]
    raise ManifestError([unknown_name("profile", name, ("local", "auto", *shipped))])
