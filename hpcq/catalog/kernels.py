"""Kernels as data: what each back end computes a scheme with, and on which GPUs. Rows and sources: kernels.toml."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from hpcq.catalog.toml_rows import catalog_rows, with_tuples
from hpcq.core.work import Scheme

Capability = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """What a back end multiplies with.

    at_least, below: compute capabilities that it runs on; below None: all from at_least on; at_least None: CPUs.
    dynamic: whether activations are scaled at run time, where that matters. multiplies: the format of its
    multiplications (None: what is computed in). faithful: False where what is computed is not what the scheme says;
    `note` then says what it is.
    """

    backend: str
    kernel: str
    weights: tuple[str, ...]
    activations: tuple[str, ...]
    at_least: Capability | None = None
    below: Capability | None = None
    dynamic: bool | None = None
    multiplies: str | None = None
    faithful: bool = True
    note: str | None = None
    source: str

    def runs_on(self, capability: Capability | None) -> bool:
        """Whether GPUs of that compute capability run it, or CPUs (None)."""
        if self.at_least is None or capability is None:
            return self.at_least is capability
        return self.at_least <= capability and (self.below is None or capability < self.below)

    def computes(self, scheme: Scheme) -> bool:
        """Whether it takes the scheme's number formats."""
        formats = scheme.weights in self.weights and scheme.activations in self.activations
        return formats and self.dynamic in (None, scheme.dynamic)

    @property
    def where(self) -> str:
        """'from compute capability 8.0', or 'from compute capability 8.0 to below 10.0'."""
        if self.at_least is None:
            return "on CPUs"
        upper = "" if self.below is None else f" to below {dotted(self.below)}"
        return f"from compute capability {dotted(self.at_least)}{upper}"


def find_kernels(backend: str, scheme: Scheme) -> tuple[Kernel, ...]:
    """Every kernel of `backend` for `scheme` on GPUs, whatever the GPU; none: it cannot compute it, or is made up."""
    return tuple(kernel for kernel in _computing(backend, scheme) if kernel.at_least is not None)


def find_kernel(backend: str, scheme: Scheme, capability: Capability | None) -> Kernel | None:
    """What `backend` computes `scheme` with on GPUs of that compute capability, or on CPUs (None); None: it cannot."""
    return next((kernel for kernel in _computing(backend, scheme) if kernel.runs_on(capability)), None)


def _computing(backend: str, scheme: Scheme) -> Iterator[Kernel]:
    return (kernel for kernel in _kernels() if kernel.backend == backend and kernel.computes(scheme))


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
