"""A cluster's profile as a first draft: from the kinds of its nodes to a TOML file with what to check.

Knows the profile's keys and the catalog's GPUs; asks nobody, and writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from hpcq.catalog.gpu_aliases import guess_gpu, is_mig
from hpcq.core.errors import SetupError
from hpcq.core.work import slug
from hpcq.slurm.sinfo import NodeKind

_USUAL_MINUTES = 1440
_MERGE_MEMORY_GIB = 16
_MIB_IN_GIB = 1024

_HEAD = """\
# What `sinfo` says of the cluster {name}. Read it once: lines with CHECK are guesses. docs/cluster.md has every key.

name = {quoted}
scheduler = "slurm"

[slurm]
# account = "…" # who pays, if your cluster asks for it: `sacctmgr show associations user=$USER`
time_limit_minutes = {minutes} # of a job; a class's max_minutes is its partition's limit
"""
_ENVIRONMENTS = """
# Without a table here, a node enters the Python environments that `make environments` (for vLLM: `python3 -m
# hpcq.core.environments vllm`) makes in hpcq's cache: set HPCQ_CACHE to a folder on a file system that the nodes share.
# [environments.vllm]
# modules = ["cuda/12.9"]
# variables = { NCCL_SOCKET_IFNAME = "ib0" } # several nodes: the network between them
"""


def profile_text(name: str, kinds: Sequence[NodeKind]) -> str:
    """The profile of a cluster of these nodes.

    Raises:
        SetupError: none of them can be used.
    """
    refused = [(kind, why) for kind in kinds if (why := _why_not(kind))]
    usable = [kind for kind in kinds if not _why_not(kind)]
    if not usable:
        reasons = " ".join(f"{_what(kind)}: {why}" for kind, why in refused) or "it lists none."
        raise SetupError(f"sinfo names no nodes of '{name}' that hpcq can use. {reasons}")
    has_cpus = any(not kind.gpus for kind in usable)
    has_gpus = any(kind.gpus for kind in usable)
    longest = max(kind.minutes or _USUAL_MINUTES for kind in usable)
    lines = [_HEAD.format(name=name, quoted=json.dumps(name), minutes=min(_USUAL_MINUTES, longest)).rstrip()]
    taken: dict[str, NodeKind] = {}
    for kind in usable:
        merges = not has_gpus or not kind.gpus
        roles = (["evaluate", "quantize"] if kind.gpus or not has_gpus else []) + (
            ["merge"] if merges or not has_cpus else []
        )
        lines += ["", *_class(_class_name(kind, taken), kind, roles)]
    lines += [f"\n# Left out: {_what(kind)}: {why}" for kind, why in refused]
    return "\n".join(lines) + "\n" + _ENVIRONMENTS


def _why_not(kind: NodeKind) -> str | None:
    """Why hpcq can do nothing with such nodes; None: it can."""
    if not kind.nodes:
        return f"none of the {kind.known} is in service; run this again when they are."
    if not kind.gpus:
        return None
    if kind.gpu_type and is_mig(kind.gpu_type):
        return "slices of GPUs (MIG) are not planned with; ask for whole ones."
    if guess_gpu(kind.gpu_type or "", *kind.features) is None:
        return "the catalog has no such GPU; add a row to hpcq/catalog/gpus.toml, and a class that names it."
    return None


def _what(kind: NodeKind) -> str:
    gpus = f"gpu:{kind.gpu_type}:{kind.gpus}" if kind.gpu_type else f"gpu:{kind.gpus}" if kind.gpus else "no GPUs"
    return f"{kind.known} node{'s' if kind.known > 1 else ''} of partition '{kind.partition}' with {gpus}"


def _class_name(kind: NodeKind, taken: dict[str, NodeKind]) -> str:
    """The GPU's type as Slurm has it, or what it was guessed from; where that is taken with what tells the two apart.

    That is the number of GPUs, or the partition where nodes of the type and number are in another one, too.
    """
    guess = guess_gpu(kind.gpu_type or "", *kind.features)
    plain = slug(kind.gpu_type or (guess.gpu if guess else "cpu")).replace(".", "-")
    is_told = all((other.gpu_type, other.gpus) != (kind.gpu_type, kind.gpus) for other in taken.values())
    mark = str(kind.gpus) if is_told else slug(kind.partition).replace(".", "-")
    names = (plain, f"{plain}-{mark}", *(f"{plain}-{mark}-{number}" for number in range(2, len(taken) + 3)))
    name = next(name for name in names if name not in taken)
    taken[name] = kind
    return name


def _class(name: str, kind: NodeKind, roles: Sequence[str]) -> Iterator[str]:
    guess = guess_gpu(kind.gpu_type or "", *kind.features) if kind.gpus else None
    yield f"[gpu_classes.{name}]"
    others = f" # CHECK: {', '.join(kind.others)} {_have(kind.others)} these nodes, too" if kind.others else ""
    yield f"partition = {json.dumps(kind.partition)}{others}"
    if guess:
        yield f"gpu = {json.dumps(guess.gpu)}" + (f" # CHECK: {guess.check}" if guess.check else "")
    if kind.gpu_type:
        yield f"gres_type = {json.dumps(kind.gpu_type)}"
    elif guess:
        yield f"features = {json.dumps(kind.feature)} # Slurm gives these GPUs no type, but the nodes a feature"
    out = kind.known - kind.nodes
    yield f"nodes = {kind.nodes}" + (f" # {out} more cannot be had now, or not at once" if out else "")
    if kind.gpus:
        yield f"gpus_per_node = {kind.gpus}"
    yield f"cpus_per_node = {kind.cpus}"
    memory_gib = kind.memory_mib // _MIB_IN_GIB
    told = "" if memory_gib else " # CHECK: Slurm is not told how much memory these nodes have"
    yield f"memory_gib = {max(1, memory_gib)}{told}"
    if not kind.gpus and "evaluate" not in roles:
        yield f"memory_gib_per_unit = {max(1, min(_MERGE_MEMORY_GIB, memory_gib))}"
    if kind.minutes:
        yield f"max_minutes = {kind.minutes}"
    yield f"roles = {json.dumps(list(roles))}"


def _have(names: Sequence[str]) -> str:
    return "have" if len(names) > 1 else "has"
