"""Files that `hpcq init` writes: a first manifest, and a draft profile of the cluster from sinfo's node groups."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from hpcq.catalog.gpu_aliases import is_mig, match_gpu
from hpcq.core.addressing import slug
from hpcq.core.errors import SetupError
from hpcq.manifest.profiles import MIN_SUBMITTED_JOBS
from hpcq.slurm.sinfo import NodeGroup

_DEFAULT_MINUTES = 1440
_MERGE_MEMORY_GIB = 16
_MIB_IN_GIB = 1024

_HEAD = """\
# Cluster {name}, from `sinfo`. Read it once: lines with CHECK are guesses. docs/cluster.md documents every key.

name = {quoted}
scheduler = "slurm"

[slurm]
# account = "…" # if your cluster requires one: `sacctmgr show associations user=$USER`
time_limit_minutes = {minutes} # per job; max_minutes of a class is the limit of its partition
"""
_ENVIRONMENTS = """
# By default nodes use the Python environments in hpcq's cache, created by `make environments` (for vLLM: `python3 -m
# hpcq.core.environments vllm`). Set HPCQ_CACHE to a folder on a file system that all nodes share.
# [environments.vllm]
# modules = ["cuda/12.9"]
# variables = { NCCL_SOCKET_IFNAME = "ib0" } # multi-node: the network between the nodes
"""


def manifest_template() -> str:
    """Return the text of the first manifest, which runs unchanged on a laptop."""
    return Path(__file__).with_name("first_manifest.toml").read_text(encoding="utf-8")


def draft_profile(name: str, groups: Sequence[NodeGroup], *, max_submitted_jobs: int | None = None) -> str:
    """Return a profile of the cluster `name` as TOML, with comments on what to check.

    Raises:
        SetupError: none of the nodes can be used.
    """
    unusable = [(group, reason) for group in groups if (reason := _rejection_reason(group))]
    usable = [group for group in groups if not _rejection_reason(group)]
    if not usable:
        reasons = " ".join(f"{_describe(group)}: {reason}" for group, reason in unusable) or "It lists none."
        raise SetupError(f"sinfo lists no nodes of '{name}' that hpcq can use. {reasons}")
    has_cpus = any(not group.gpus for group in usable)
    has_gpus = any(group.gpus for group in usable)
    longest = max(group.time_limit_minutes or _DEFAULT_MINUTES for group in usable)
    lines = [_HEAD.format(name=name, quoted=json.dumps(name), minutes=min(_DEFAULT_MINUTES, longest)).rstrip()]
    if max_submitted_jobs is not None:
        check = " # CHECK: your limit in Slurm's accounting"
        lines.append(f"max_submitted_jobs = {max(MIN_SUBMITTED_JOBS, max_submitted_jobs)}{check}")
    taken: dict[str, NodeGroup] = {}
    for group in usable:
        merges = not has_gpus or not group.gpus
        roles = (["evaluate", "quantize"] if group.gpus or not has_gpus else []) + (
            ["merge"] if merges or not has_cpus else []
        )
        lines += ["", *_class_lines(_class_name(group, taken), group, roles)]
    lines += [f"\n# Skipped: {_describe(group)}: {reason}" for group, reason in unusable]
    return "\n".join(lines) + "\n" + _ENVIRONMENTS


def _rejection_reason(group: NodeGroup) -> str | None:
    """Return why hpcq cannot use these nodes; None if it can."""
    if not group.usable_nodes:
        return f"none of the {group.total_nodes} is in service; repeat the command when they are."
    if not group.gpus:
        return None
    if group.gpu_type and is_mig(group.gpu_type):
        return "MIG slices are not supported; request whole GPUs."
    if match_gpu(group.gpu_type or "", *group.features) is None:
        return "this GPU is not in the catalog; add it to hpcq/catalog/gpus.toml, and add a class to this profile."
    return None


def _describe(group: NodeGroup) -> str:
    gpus = f"gpu:{group.gpu_type}:{group.gpus}" if group.gpu_type else f"gpu:{group.gpus}" if group.gpus else "no GPUs"
    return (
        f"{group.total_nodes} node{'s' if group.total_nodes > 1 else ''} of partition '{group.partition}' with {gpus}"
    )


def _class_name(group: NodeGroup, taken: dict[str, NodeGroup]) -> str:
    """Return a unique name: the GPU's type in Slurm or the catalog's name, with a suffix if that name is taken.

    The suffix is the number of GPUs per node; if a class with the same type and number exists, the partition.
    """
    guess = match_gpu(group.gpu_type or "", *group.features)
    base = slug(group.gpu_type or (guess.gpu if guess else "cpu")).replace(".", "-")
    is_unique = all((other.gpu_type, other.gpus) != (group.gpu_type, group.gpus) for other in taken.values())
    suffix = str(group.gpus) if is_unique else slug(group.partition).replace(".", "-")
    names = (base, f"{base}-{suffix}", *(f"{base}-{suffix}-{number}" for number in range(2, len(taken) + 3)))
    name = next(name for name in names if name not in taken)
    taken[name] = group
    return name


def _class_lines(name: str, group: NodeGroup, roles: Sequence[str]) -> Iterator[str]:
    guess = match_gpu(group.gpu_type or "", *group.features) if group.gpus else None
    yield f"[gpu_classes.{name}]"
    others = (
        f" # CHECK: {', '.join(group.other_partitions)} {_have(group.other_partitions)} these nodes too"
        if group.other_partitions
        else ""
    )
    yield f"partition = {json.dumps(group.partition)}{others}"
    if guess:
        yield f"gpu = {json.dumps(guess.gpu)}" + (f" # CHECK: {guess.ambiguity}" if guess.ambiguity else "")
    if group.gpu_type:
        yield f"gres_type = {json.dumps(group.gpu_type)}"
    elif guess:
        yield f"features = {json.dumps(group.gpu_feature)} # these GPUs have no type in Slurm; the nodes have a feature"
    unavailable = group.total_nodes - group.usable_nodes
    yield f"nodes = {group.usable_nodes}" + (
        f" # {unavailable} more are not available now, or not at the same time" if unavailable else ""
    )
    if group.gpus:
        yield f"gpus_per_node = {group.gpus}"
    yield f"cpus_per_node = {group.cpus}"
    memory_gib = group.memory_mib // _MIB_IN_GIB
    check = "" if memory_gib else " # CHECK: Slurm does not know the memory of these nodes"
    yield f"memory_gib = {max(1, memory_gib)}{check}"
    if not group.gpus and "evaluate" not in roles:
        yield f"memory_gib_per_unit = {max(1, min(_MERGE_MEMORY_GIB, memory_gib))}"
    if group.time_limit_minutes:
        yield f"max_minutes = {group.time_limit_minutes}"
    yield f"roles = {json.dumps(list(roles))}"


def _have(names: Sequence[str]) -> str:
    return "have" if len(names) > 1 else "has"
