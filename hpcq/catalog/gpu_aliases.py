"""Names that clusters give their GPUs in Slurm's GRES, mapped to GPU types of the catalog.

An ambiguous name yields the likelier type and a warning; an unknown name yields None.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# The first row whose expression matches the name (in lower case, with hyphens) counts: GPU types by memory in GB, the
# likelier first. GH200 and GB200 are not H200, H100 or B200; an A10G is not an A10, and an L40 not an L40S.
_ROWS: tuple[tuple[str, dict[str, str]], ...] = (
    (r"(?<!g)b200", {"180": "B200-180"}),
    (r"(?<!g)h200", {"141": "H200-141"}),
    (r"(?<!g)h100", {"80": "H100-80"}),
    (r"a100", {"80": "A100-80", "40": "A100-40"}),
    (r"v100", {"32": "V100-32", "16": "V100-16"}),
    (r"6000-?ada", {"48": "RTX6000Ada-48"}),
    (r"a6000", {"48": "A6000-48"}),
    (r"l40s", {"48": "L40S-48"}),
    (r"4090", {"24": "RTX4090-24"}),
    (r"l4(?!\d)", {"24": "L4-24"}),
    (r"a10(?![\dg])", {"24": "A10-24"}),
)
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
        plain = re.sub(r"[^a-z0-9]+", "-", name.lower())
        for expression, by_memory in _ROWS:
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


def is_mig(name: str) -> bool:
    """Return whether the name is that of a MIG slice, such as 'a100_3g.20gb'."""
    return _MIG.search(name) is not None
