"""Kernels of each backend (kernels.toml, plugins): the schemes that they compute, the GPUs that they run on."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from hpcq.catalog.checkpoint_formats import CheckpointFormat
from hpcq.catalog.plugins import Plugin, installed_plugins
from hpcq.catalog.toml_rows import RowError, catalog_rows, make_record
from hpcq.catalog.tools import backends
from hpcq.core.frozen import dataclass
from hpcq.core.work_records import Scheme

Capability = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel that multiplies quantized or unquantized weights.

    Attributes:
        backend: The backend that has it.
        name: Its name in plans.
        weights: Number formats of weights.
        activations: Number formats of activations.
        min_capability: Lowest compute capability; None: it runs on CPUs.
        below_capability: Compute capabilities are below this one; None: no upper bound.
        dynamic: Required `dynamic` of the scheme (activation scales computed at run time); None: any.
        symmetric: Required `symmetric` of the scheme; None: any.
        activation_order: Required `activation_order` of the scheme; None: any.
        granularities: Granularities of the weights' scales that it computes; empty: any.
        group_sizes: Group sizes that it computes; empty: any.
        linear_backend: Value of evaluate.engine.linear_backend that selects it; None: the backend selects it itself.
        checkpoint_formats: Formats of the files that it loads; checkpoints that hpcq creates count as
            compressed-tensors, and unquantized ones as any.
        distributions: Distributions that it needs besides the backend's own; their versions can change a result.
        computes_experts: It multiplies the quantized weights of experts, too.
        matmul_dtype: Number format of the multiplications; None: the type of the computation.
        matches_scheme: False if the kernel computes something else than the scheme defines, as `note` explains.
        note: Explanation for readers of plans and reports.
        source: Source file or document of the row.
    """

    backend: str
    name: str
    weights: tuple[str, ...]
    activations: tuple[str, ...]
    min_capability: Capability | None = None
    below_capability: Capability | None = None
    dynamic: bool | None = None
    symmetric: bool | None = None
    activation_order: bool | None = None
    granularities: tuple[str, ...] = ()
    group_sizes: tuple[int, ...] = ()
    linear_backend: str | None = None
    checkpoint_formats: tuple[str, ...] = (CheckpointFormat.COMPRESSED_TENSORS.value,)
    distributions: tuple[str, ...] = ()
    computes_experts: bool = True
    matmul_dtype: str | None = None
    matches_scheme: bool = True
    note: str | None = None
    source: str

    def runs_on(self, capability: Capability | None) -> bool:
        """Return whether it runs on GPUs of this compute capability, or on CPUs (None)."""
        if self.min_capability is None or capability is None:
            return self.min_capability is capability
        return self.min_capability <= capability and (
            self.below_capability is None or capability < self.below_capability
        )

    def supports(self, scheme: Scheme) -> bool:
        """Return whether it loads the checkpoint and computes the scheme's number formats."""
        formats = scheme.weights in self.weights and scheme.activations in self.activations
        is_loaded = scheme.checkpoint_format in (None, *self.checkpoint_formats)
        required = (
            (self.dynamic, scheme.dynamic),
            (self.symmetric, scheme.symmetric),
            (self.activation_order, bool(scheme.activation_order)),
        )
        scales = scheme.granularity in (self.granularities or (scheme.granularity,))
        groups = scheme.group_size in (self.group_sizes or (scheme.group_size,))
        return (
            formats and is_loaded and scales and groups and all(wanted in (None, found) for wanted, found in required)
        )

    @property
    def capability_range(self) -> str:
        """Compute capabilities as text: 'from compute capability 8.0', or '… to below 10.0'; also what selects it."""
        if self.min_capability is None:
            return "on CPUs"
        upper = "" if self.below_capability is None else f" to below {format_capability(self.below_capability)}"
        option = f" with evaluate.engine.linear_backend = '{self.linear_backend}'" if self.linear_backend else ""
        return f"from compute capability {format_capability(self.min_capability)}{upper}{option}"


@dataclass(frozen=True, kw_only=True)
class CacheSupport:
    """Quantized KV caches of a backend.

    Attributes:
        backend: The backend.
        formats: Number formats of the KV cache.
        min_capability: Lowest compute capability.
        source: Source file or document of the row.
    """

    backend: str
    formats: tuple[str, ...]
    min_capability: Capability
    source: str


def find_kernels(backend: str, scheme: Scheme) -> tuple[Kernel, ...]:
    """Return all kernels of `backend` that compute `scheme` on GPUs."""
    return tuple(kernel for kernel in _supporting(backend, scheme) if kernel.min_capability is not None)


def find_kernel(
    backend: str,
    scheme: Scheme,
    capability: Capability | None,
    *,
    has_experts: bool = False,
    linear_backend: str | None = None,
) -> Kernel | None:
    """Return the first kernel of `backend` for `scheme` on GPUs of this compute capability, or on CPUs (None).

    Args:
        backend: Name of the backend.
        scheme: The scheme.
        capability: Compute capability; None: CPUs.
        has_experts: The model has experts, which a quantized scheme quantizes.
        linear_backend: Value of evaluate.engine.linear_backend. Where it has no kernel for the scheme, the backend
            selects one itself, as without it.
    """
    needs_experts = has_experts and scheme.is_quantized
    found = [
        kernel
        for kernel in _supporting(backend, scheme)
        if kernel.runs_on(capability)
        and (kernel.computes_experts or not needs_experts)
        and kernel.linear_backend in (None, linear_backend)
    ]
    return min(found, key=lambda kernel: kernel.linear_backend is None, default=None)


def kv_cache_problem(backend: str, scheme: Scheme, capability: Capability | None) -> str | None:
    """Return why a backend cannot compute the scheme's KV cache, as a clause; None: it can, or it is not quantized.

    Args:
        backend: Name of the backend.
        scheme: The scheme.
        capability: Compute capability; None: CPUs.
    """
    if scheme.kv_cache is None or not has_kernels(backend):
        return None
    rows = [row for row in _caches() if row.backend == backend and scheme.kv_cache in row.formats]
    if any(capability is not None and row.min_capability <= capability for row in rows):
        return None
    place = "CPUs" if capability is None else f"compute capability {format_capability(capability)}"
    ranges = " or ".join(f"from compute capability {format_capability(row.min_capability)}" for row in rows)
    supported = f"it does so {ranges}" if rows else "use evaluate.backend = 'vllm'"
    return f"{backend_title(backend)} has no KV cache in {scheme.kv_cache} on {place}: {supported}"


def _supporting(backend: str, scheme: Scheme) -> Iterator[Kernel]:
    return (kernel for kernel in _all_kernels() if kernel.backend == backend and kernel.supports(scheme))


def has_kernels(backend: str) -> bool:
    """Return whether the backend's kernels are known. The synthetic backend has none."""
    return any(kernel.backend == backend for kernel in _all_kernels())


def is_cpu_only(backend: str) -> bool:
    """Return whether all kernels of the backend are for CPUs, so that it needs no GPU where a node has some."""
    own = [kernel for kernel in _all_kernels() if kernel.backend == backend]
    return bool(own) and all(kernel.min_capability is None for kernel in own)


def backend_title(backend: str) -> str:
    """Return the backend's name with the version from which its rows were read."""
    return backends()[backend].title


def format_capability(capability: Capability) -> str:
    """Return a compute capability as NVIDIA writes it: '8.9'."""
    return f"{capability[0]}.{capability[1]}"


@lru_cache
def _caches() -> tuple[CacheSupport, ...]:
    return tuple(make_record(CacheSupport, row) for row in catalog_rows("kernels.toml")["kv_caches"])


def _all_kernels() -> tuple[Kernel, ...]:
    return _kernels(installed_plugins())


@lru_cache(maxsize=8)
def _kernels(plugins: tuple[Plugin, ...]) -> tuple[Kernel, ...]:
    """Return the kernels of the catalog, then those that each plugin declares for its own backends."""
    found = [make_record(Kernel, row) for row in catalog_rows("kernels.toml")["kernels"]]
    for plugin in plugins:
        own = tuple(name for name, info in backends().items() if info.plugin == plugin)
        for number, row in enumerate(plugin.tables.get("kernels", ()), start=1):
            try:
                kernel = make_record(Kernel, row)
            except RowError as error:
                raise plugin.error(f"[[kernels]] number {number}: {error}") from error
            if kernel.backend not in own:
                raise plugin.error(f"[[kernels]] number {number}: it has no backend '{kernel.backend}'")
            found.append(kernel)
    return tuple(found)
