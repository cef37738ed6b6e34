"""Names that clusters give their GPUs in Slurm's GRES, mapped to GPU types of the catalog.

An ambiguous name yields the likelier type and a warning; an unknown name yields None.
"""

from __future__ import annotations

import re

from hpcq.catalog.gpus import find_gpu, gpu_names
from hpcq.core.frozen import dataclass

_MIG = re.compile(r"\d+g\.\d+gb", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class GpuMatch:
    """A GPU type that a cluster's name matches.

    Attributes:
        gpu: Name in the catalog.
        ambiguity: Warning if the name matches several types; None: it matches one.
    """

    gpu: str
    ambiguity: str | None = None


def match_gpu(*names: str) -> GpuMatch | None:
    """Return the GPU type of the first name that matches one. The memory size may be in any of the names."""
    for name in names:
        plain = _plain(name)
        for expression, by_memory in _expressions().items():
            if is_mig(name) or not re.search(expression, plain):
                continue
            if len(by_memory) == 1:
                return GpuMatch(gpu=next(iter(by_memory.values())))
            numbers = {number for each in names for number in re.findall(r"\d+", each)}
            matching = [gpu for memory, gpu in by_memory.items() if memory in numbers]
            if len(matching) == 1:
                return GpuMatch(gpu=matching[0])
            likeliest, *others = by_memory.values()
            ambiguity = f"'{name}' may also be {', '.join(others)}: check with nvidia-smi on a node."
            return GpuMatch(gpu=likeliest, ambiguity=ambiguity)
    return None


def _expressions() -> dict[str, dict[str, str]]:
    """Return the GPU types by memory in GB, by the expression that matches their names; the likelier type is first."""
    found: dict[str, dict[str, str]] = {}
    for name in gpu_names():
        gpu, (model, _, memory_gb) = find_gpu(name), name.rpartition("-")
        expression = (gpu and gpu.cluster_names) or rf"(?<![a-z0-9]){_plain(model)}(?![a-z0-9])"
        found.setdefault(expression, {})[memory_gb] = name
    return found


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def is_mig(name: str) -> bool:
    """Return whether the name is that of a MIG slice, such as 'a100_3g.20gb'."""
    return _MIG.search(name) is not None
