"""Registry of quantizers and backends: hpcq's own (tools.toml) and those of installed plugins."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import replace
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from hpcq.catalog.plugins import Group, Plugin, installed_plugins
from hpcq.catalog.toml_rows import RowError, catalog_rows, make_record
from hpcq.core.environments import normalized_name
from hpcq.core.errors import SetupError
from hpcq.core.frozen import dataclass
from hpcq.core.work_records import UNQUANTIZED

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

_FILE = "tools.toml"


class Splitting(StrEnum):
    """How a backend distributes a model over several GPUs.

    Attributes:
        NONE: It does not.
        LAYERS: Whole layers, over the GPUs of one node.
        TENSOR: Weight matrices over the GPUs of a node, and layers over nodes if it spans them.
    """

    NONE = "none"
    LAYERS = "layers"
    TENSOR = "tensor"


@dataclass(frozen=True, kw_only=True)
class ToolInfo:
    """What the planner must know about any tool.

    Attributes:
        name: Its name in a manifest.
        environment: Python environment in which it runs: one of hpcq, one with a lock file next to the plugin's
            declaration (`<environment>.lock.txt`), or one whose interpreter the cluster profile gives.
        distributions: Distributions of that environment whose version can change a result: they enter content
            addresses, as does the plugin's own.
        alternative_builds: Builds of the tool for different hardware; an environment contains one of them.
        startup_s: Seconds from the start of the process until weights are read.
        softcap_attention: Attention implementation for models that cap attention logits; None: it needs no other.
        plugin: The plugin that declares it; None: hpcq.
    """

    name: str
    environment: str
    distributions: tuple[str, ...]
    alternative_builds: tuple[str, ...] = ()
    startup_s: float = 30.0
    softcap_attention: str | None = None
    plugin: Plugin | None = None

    @property
    def origin(self) -> str:
        """The distribution that declares it, for messages."""
        return self.plugin.title if self.plugin else "hpcq"


@dataclass(frozen=True, kw_only=True)
class QuantizerInfo(ToolInfo):
    """A quantizer.

    Attributes:
        methods: Values of a scheme's `method` that it offers.
        calibrated_methods: Those that need a calibration set. Round-to-nearest (`rtn`) needs one if activation scales
            are static.
        host_bytes_per_parameter: Host memory per parameter of the model; None: estimated as for llmcompressor, which
            holds the model in host memory and processes it block by block.
        gpu_bytes_per_parameter: Memory of its GPU per parameter, if `host_bytes_per_parameter` is given.
        checkpoint_formats: Formats of its checkpoints, in the order of `methods`; empty: compressed-tensors.
        resumes: Whether a quantization that was killed continues after its last finished block.
    """

    methods: tuple[str, ...]
    calibrated_methods: tuple[str, ...] = ()
    host_bytes_per_parameter: float | None = None
    gpu_bytes_per_parameter: float = 0.0
    checkpoint_formats: tuple[str, ...] = ()
    resumes: bool = True

    def checkpoint_format(self, method: str) -> str | None:
        """Return the format of the files that it writes with a method; None: compressed-tensors."""
        return dict(zip(self.methods, self.checkpoint_formats, strict=False)).get(method)


@dataclass(frozen=True, kw_only=True)
class BackendInfo(ToolInfo):
    """A backend.

    Attributes:
        title: Its name with the version to which the declaration applies; empty: the name and the plugin's version.
        cpu_environment: Environment of its CPU build, used if no node class with the role evaluate has GPUs.
        splitting: How it distributes a model over GPUs.
        spans_nodes: It runs on several nodes.
        reserves_kv_cache: It allocates the KV cache at the start, which must hold a prompt of maximum length. Others
            reduce the batch if memory is short.
        decompresses: It converts quantized weights to 16 bits when it loads them.
        int8_divisor: Number by which it divides the largest absolute value of a token for the dynamic scale of INT8
            activations, where it simulates them; None: its kernels decide. A part of the address of such responses.
        offloads: It can keep weights in host memory or on disk (`evaluate.offload`).
        has_engine_options: It takes `[evaluate.engine]`, with the sizes of the parallel layout.
        fallback: Backend for models and schemes that this one does not support.
        applied_generation_config: Earlier versions of hpcq applied the settings in generation_config.json with it.
        reads_fidelity_panel: It answers the requests of `[fidelity]`: log-probabilities of the most probable tokens at
            every position of a text.
        unsupported_architectures: Model architectures for which it has no code (vLLM's are in architectures.toml).
        prefill_efficiency: Share of a GPU's dense FLOP/s that prompts reach.
        layer_overhead_s: Python overhead per layer and generation step.
    """

    title: str = ""
    cpu_environment: str | None = None
    splitting: Splitting = Splitting.NONE
    spans_nodes: bool = False
    reserves_kv_cache: bool = False
    decompresses: bool = False
    int8_divisor: int | None = None
    offloads: bool = False
    has_engine_options: bool = False
    fallback: str | None = None
    applied_generation_config: bool = False
    reads_fidelity_panel: bool = False
    unsupported_architectures: tuple[str, ...] = ()
    prefill_efficiency: float = 0.2
    layer_overhead_s: float = 0.0005


_Info = TypeVar("_Info", QuantizerInfo, BackendInfo)


def quantizers() -> dict[str, QuantizerInfo]:
    """Return all quantizers by name, hpcq's own first. Do not modify it.

    Raises:
        SetupError: The declaration of an installed plugin is invalid.
    """
    return _quantizers(installed_plugins())


def backends() -> dict[str, BackendInfo]:
    """Return all backends by name, hpcq's own first. Do not modify it.

    Raises:
        SetupError: The declaration of an installed plugin is invalid.
    """
    return _backends(installed_plugins())


def load_tool(group: Group, name: str) -> Any:
    """Return the class of a quantizer or backend; None: there is none of that name.

    Workers call it; there a plugin's entry point is enough, without its declaration. No plugin replaces a built-in.

    Raises:
        SetupError: The plugin's module cannot be imported, or has no such class.
    """
    built_in, points = _implementations(group), _entry_points(group)
    if name in built_in:
        module, _, attribute = built_in[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if name not in points:
        return None
    try:
        return points[name].load()
    except (ImportError, AttributeError) as error:
        owner = points[name].dist
        raise SetupError(
            f"Plugin {owner.name if owner else name}: '{points[name].value}' cannot be imported here ({error})."
            " Correct the plugin, or add what it imports to the lock file of its environment."
        ) from error


def loadable_names(group: Group) -> list[str]:
    """Return the names of all tools that `load_tool` finds, sorted."""
    return sorted({*_implementations(group), *_entry_points(group)})


def _implementations(group: Group) -> dict[str, str]:
    return {name: row["implementation"] for name, row in catalog_rows(_FILE)[group.table].items()}


def _entry_points(group: Group) -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=group)}


@lru_cache(maxsize=8)
def _quantizers(plugins: tuple[Plugin, ...]) -> dict[str, QuantizerInfo]:
    found = _read_all(QuantizerInfo, Group.QUANTIZERS, plugins)
    for info in found.values():
        extra = set(info.calibrated_methods) - set(info.methods)
        if extra and info.plugin:
            raise info.plugin.error(f"[quantizers.{info.name}]: '{min(extra)}' is not in its methods")
        if UNQUANTIZED in (info.name, *info.methods) and info.plugin:
            raise info.plugin.error(f"[quantizers.{info.name}]: '{UNQUANTIZED}' is reserved for base checkpoints")
    return found


@lru_cache(maxsize=8)
def _backends(plugins: tuple[Plugin, ...]) -> dict[str, BackendInfo]:
    found = _read_all(BackendInfo, Group.BACKENDS, plugins)
    for name, info in found.items():
        if not info.title:
            found[name] = replace(info, title=f"{name} ({info.origin})")
        if info.spans_nodes and info.splitting is not Splitting.TENSOR and info.plugin:
            raise info.plugin.error(f"[backends.{info.name}]: spans_nodes requires splitting = 'tensor'")
        if info.fallback is not None and info.fallback not in found and info.plugin:
            known = ", ".join(found)
            raise info.plugin.error(f"[backends.{info.name}]: fallback '{info.fallback}' is none of {known}")
    return found


def _read_all(kind: type[_Info], group: Group, plugins: Iterable[Plugin]) -> dict[str, _Info]:
    """Return hpcq's tools of a group, then those of `plugins`. Names must be unique."""
    found: dict[str, _Info] = {}
    for name, row in catalog_rows(_FILE)[group.table].items():
        fields = {key: value for key, value in row.items() if key != "implementation"}
        found[name] = make_record(kind, fields, name=name, plugin=None)
    for plugin in plugins:
        for name, row in plugin.rows(group.table).items():
            if name in found:
                raise plugin.error(f"[{group.table}.{name}]: {found[name].origin} has one of that name: rename it")
            found[name] = _declared(kind, group, plugin, name, row)
    return found


def _declared(kind: type[_Info], group: Group, plugin: Plugin, name: str, row: object) -> _Info:
    try:
        info = make_record(kind, row, name=name, plugin=plugin)
    except RowError as error:
        raise plugin.error(f"[{group.table}.{name}]: {error}") from error
    return replace(info, distributions=tuple(map(normalized_name, info.distributions)))
