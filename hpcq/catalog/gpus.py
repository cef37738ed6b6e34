"""GPU types with memory, compute capability and speed (gpus.toml)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from functools import lru_cache

from hpcq.catalog.toml_rows import catalog_rows, with_tuples
from hpcq.core.frozen import dataclass

FORMAT_FALLBACKS = ("bf16", "fp16", "fp32")
"""Number formats in which a GPU computes what it cannot multiply, the best first."""


@dataclass(frozen=True, kw_only=True)
class GPU:
    """A type of GPU.

    Attributes:
        name: Its name in the catalog, with the nominal memory in GB.
        memory_gib: Total memory that the driver reports.
        compute_capability: Major and minor version, such as (9, 0).
        bandwidth_gb_per_s: Memory bandwidth in 10^9 bytes/s.
        dense_tflops: 10^12 FLOP/s by number format, without sparsity; formats that it cannot multiply are absent.
        link: Link between the GPUs of a node; any name.
        link_gb_per_s: Bandwidth of that link, both directions together.
        link_latency_us: Latency of an all-reduce of a few tokens.
        cluster_names: Regular expression for the names that clusters give it; None: its name without the memory.
        source: Document with these numbers.
    """

    name: str
    memory_gib: float
    compute_capability: tuple[int, int]
    bandwidth_gb_per_s: float
    dense_tflops: Mapping[str, float] = field(hash=False)
    link: str
    link_gb_per_s: float
    source: str
    link_latency_us: float = 40.0
    cluster_names: str | None = None

    @property
    def supports_fp8(self) -> bool:
        """Its tensor cores multiply FP8 (since Ada and Hopper: compute capability 8.9)."""
        return self.compute_capability >= (8, 9)

    def format_for(self, wanted: str) -> str:
        """Return the number format in which it multiplies `wanted`: that one, the next best, or its slowest."""
        known = self.dense_tflops
        usable = (name for name in (wanted, *FORMAT_FALLBACKS) if name in known)
        return next(usable, None) or min(known, key=known.__getitem__)


def gpu_names() -> tuple[str, ...]:
    """Return the names of all GPU types in the catalog."""
    return tuple(_gpus())


def find_gpu(name: str) -> GPU | None:
    """Return the GPU type with this name in the catalog; None: unknown."""
    return _gpus().get(name)


@lru_cache
def _gpus() -> dict[str, GPU]:
    return {name: GPU(name=name, **with_tuples(row)) for name, row in catalog_rows("gpus.toml").items()}
