"""GPUs as data: what the planner needs to know of a device. The numbers and their sources stand in gpus.toml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from hpcq.catalog.toml_rows import catalog_rows, with_tuples


@dataclass(frozen=True, kw_only=True)
class GPU:
    """One kind of GPU.

    memory_gib: what the driver reports, all of it. compute_capability: major and minor, as in (9, 0).
    bandwidth_gb_per_s: of its memory, in 10^9 bytes a second. dense_tflops: 10^12 operations a second by number format,
    of those that it multiplies. link, link_gb_per_s: what joins the GPUs of a node, both ways together. source: the
    document that says so.
    """

    name: str
    memory_gib: float
    compute_capability: tuple[int, int]
    bandwidth_gb_per_s: float
    dense_tflops: Mapping[str, float] = field(hash=False)
    link: str
    link_gb_per_s: float
    source: str

    @property
    def computes_fp8(self) -> bool:
        """Whether its tensor cores multiply FP8 (Ada and Hopper on: compute capability 8.9)."""
        return self.compute_capability >= (8, 9)


def gpu_names() -> tuple[str, ...]:
    """Every GPU that the catalog knows."""
    return tuple(_gpus())


def find_gpu(name: str) -> GPU | None:
    """The GPU of that catalog name; None: unknown."""
    return _gpus().get(name)


@lru_cache
def _gpus() -> dict[str, GPU]:
    return {name: GPU(name=name, **with_tuples(row)) for name, row in catalog_rows("gpus.toml").items()}
