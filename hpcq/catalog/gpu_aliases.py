"""Which GPU of the catalog a cluster means by the name that it gives its GPUs. Knows names alone; asks nobody.

A name that may mean two GPUs gets the likelier one, and what to check; one that may mean none of them gets nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# The first row whose expression is in the name, in lower case and with hyphens, decides: GPUs by memory in GB, the
# likelier first. GH200 and GB200 are neither H200, H100 nor B200; an A10G is no A10, and an L40 no L40S.
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
class Guess:
    """A name of the catalog, and what to check of it where the words say too little; None: they say enough."""

    gpu: str
    check: str | None = None


def guess_gpu(*words: str) -> Guess | None:
    """The GPU that these words mean: the first that names one, with the memory that any of them names."""
    for word in words:
        plain = re.sub(r"[^a-z0-9]+", "-", word.lower())
        for expression, by_memory in _ROWS:
            if is_mig(word) or not re.search(expression, plain):
                continue
            if len(by_memory) == 1:
                return Guess(gpu=next(iter(by_memory.values())))
            numbers = {number for each in words for number in re.findall(r"\d+", each)}
            named = [gpu for memory, gpu in by_memory.items() if memory in numbers]
            if len(named) == 1:
                return Guess(gpu=named[0])
            likeliest, *others = by_memory.values()
            return Guess(gpu=likeliest, check=f"'{word}' may also be {', '.join(others)}: nvidia-smi on a node tells.")
    return None


def is_mig(word: str) -> bool:
    """Whether it names a slice of a GPU, such as 'a100_3g.20gb'."""
    return _MIG.search(word) is not None
