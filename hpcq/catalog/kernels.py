"""Kernels as data: what each back end computes a scheme with, and on which GPUs. Rows and sources: kernels.toml."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from hpcq.catalog.rows import catalog_rows, with_tuples
from hpcq.units import Scheme

Capability = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """What a back end multiplies with.

    at_least, below: compute capabilities that it runs on; below None: all from at_least on. multiplies: the format of
    its multiplications (None: what is computed in). faithful: False where what
    is computed is not what the scheme says; `note` then says what it is.
    """

    backend: str
    kernel: str
    weights: tuple[str, ...]
    activations: tuple[str, ...]
    at_least: Capability
    below: Capability | None = None
    multiplies: str | None = None
    faithful: bool = True
    note: str | None = None
    source: str

    def runs_on(self, capability: Capability) -> bool:
        """Whether GPUs of that compute capability run it."""
        return self.at_least <= capability and (self.below is None or capability < self.below)

    @property
    def where(self) -> str:
        """'from compute capability 8.0', or 'from compute capability 8.0 to below 10.0'."""
        upper = "" if self.below is None else f" to below {dotted(self.below)}"
        return f"from compute capability {dotted(self.at_least)}{upper}"


def find_kernels(backend: str, scheme: Scheme) -> tuple[Kernel, ...]:
    """Every kernel of `backend` for `scheme`, whatever the GPU; none: it cannot compute it, or is made up."""
    return tuple(
        kernel
        for kernel in _kernels()
        if kernel.backend == backend and scheme.weights in kernel.weights and scheme.activations in kernel.activations
    )


def find_kernel(backend: str, scheme: Scheme, capability: Capability) -> Kernel | None:
    """What `backend` computes `scheme` with on GPUs of that compute capability; None: it cannot."""
    return next((kernel for kernel in find_kernels(backend, scheme) if kernel.runs_on(capability)), None)


def has_kernels(backend: str) -> bool:
    """Whether the catalog knows the back end's kernels: not those of a rehearsal, which computes nothing."""
    return backend in catalog_rows("kernels.toml")["backends"]


def title_of(backend: str) -> str:
    """The back end's name with the version that the rows were read in."""
    return str(catalog_rows("kernels.toml")["backends"][backend]["name"])


def has_architecture(backend: str, architecture: str | None) -> bool:
    """False where the back end is known to lack a model's code."""
    row = catalog_rows("kernels.toml")["backends"].get(backend, {})
    return architecture not in row.get("lacks_architectures", ())


def dotted(capability: Capability) -> str:
    """A compute capability as NVIDIA writes it: '8.9'."""
    return f"{capability[0]}.{capability[1]}"


@lru_cache
def _kernels() -> tuple[Kernel, ...]:
    return tuple(Kernel(**with_tuples(row)) for row in catalog_rows("kernels.toml")["kernels"])
