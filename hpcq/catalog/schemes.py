"""Quantization schemes by name (schemes.toml, plugins), and whether a scheme fits a model's shape."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal, get_args

from hpcq.catalog.checkpoint_formats import CheckpointFormat
from hpcq.catalog.format_problems import format_problem
from hpcq.catalog.ignored_layers import entry_problem, matches
from hpcq.catalog.model_shape import HEAD, Linear, ModelShape
from hpcq.catalog.number_formats import GROUP_SIZES, STATIC_GLOBAL_SCALE
from hpcq.catalog.number_formats import UNQUANTIZED as _FLOATING_POINT
from hpcq.catalog.plugins import Group, Plugin, installed_plugins
from hpcq.catalog.toml_rows import RowError, catalog_rows, make_record
from hpcq.catalog.tools import quantizers
from hpcq.core.frozen import dataclass
from hpcq.core.work_records import SYNTHETIC, UNQUANTIZED, Scheme

NumberFormat = Literal[
    "fp32", "bf16", "fp16", "fp8_e4m3", "int8", "int4", "int3", "int2", "nf4", "fp4", "nvfp4", "mxfp4", "mxfp8"
]
Granularity = Literal["tensor", "channel", "group", "block"]
CacheFormat = Literal["fp8_e4m3"]
"""Number formats of a quantized KV cache."""

TOOL_SEPARATOR = ":"
"""Between tool and scheme in a name."""

_GROUP_SUFFIX = re.compile(r"(?P<base>.+)-g(?P<group_size>[1-9][0-9]*)")
_USUAL_GROUP_SIZES = (128, 64, 32)
"""Group sizes that vLLM's Marlin kernels for 4-bit weights support."""


def make_scheme(**fields: Any) -> Scheme:
    """Return a scheme with these fields, and derive whether it needs a calibration set."""
    is_static = fields["activations"] not in _FLOATING_POINT and not fields.get("dynamic", False)
    is_static = is_static or fields["activations"] in STATIC_GLOBAL_SCALE or fields.get("kv_cache") is not None
    tool = quantizers().get(fields["tool"])
    is_calibrated = tool is not None and fields["method"] in tool.calibrated_methods
    needs_calibration = is_calibrated or (fields["method"] == "rtn" and is_static)
    derived = {
        "ignore": tuple(fields.get("ignore", (HEAD,))),
        "mappings": tuple(fields.get("mappings", ())),
        "needs_calibration": needs_calibration,
        "checkpoint_format": tool.checkpoint_format(fields["method"]) if tool else None,
    }
    return Scheme(**{**fields, **derived})


def scheme_names() -> tuple[str, ...]:
    """Return the names of all schemes in the catalog and of plugins, without group sizes."""
    return tuple(_schemes(installed_plugins()))


def without_default_tool(name: str) -> str:
    """Return the name without the tool that the scheme has anyway: 'gptq-w4a16' for 'llmcompressor:gptq-w4a16'."""
    tool, separator, rest = name.partition(TOOL_SEPARATOR)
    base = split_group_size(rest)[0]
    known = _schemes(installed_plugins())
    found = known.get(rest) or known.get(base)
    return rest if separator and found and found.tool == tool else name


def find_scheme(name: str, custom: Mapping[str, Scheme] | None = None) -> Scheme | None:
    """Return the scheme with this name: one of `custom`, or the catalog's. The name may end with a group size.

    Args:
        name: Name of the scheme, such as 'gptq-w4a16', 'gptq-w4a16-g64' or 'autogptq:gptq-w4a16-g64'.
        custom: The manifest's own schemes.

    Returns:
        The scheme; None if the name is unknown, or if it has a group size and the scheme has no groups, or fixed ones.
    """
    known = {**_schemes(installed_plugins()), **(custom or {})}
    if name in known:
        return known[name]
    plain = without_default_tool(name)
    if plain in known:
        return replace(known[plain], name=name)
    base, group_size = split_group_size(plain)
    if group_size is None or base not in known or not has_free_group_size(known[base]):
        return None
    return replace(known[base], name=name, group_size=group_size)


def has_dynamic_int8_activations(scheme: Scheme) -> bool:
    """Return whether activations are rounded to INT8 with scales of tokens, in files of compressed-tensors."""
    formats = (None, CheckpointFormat.COMPRESSED_TENSORS.value)
    return scheme.activations == "int8" and scheme.dynamic and scheme.checkpoint_format in formats


def has_free_group_size(scheme: Scheme) -> bool:
    """Return whether the scheme has groups whose size can be chosen."""
    return scheme.granularity == "group" and scheme.weights not in GROUP_SIZES


def synthetic_scheme(scheme: Scheme, *, keep_method: bool = False) -> Scheme:
    """Return the replacement of `scheme` with the synthetic backend: nothing is quantized.

    Args:
        scheme: The scheme.
        keep_method: Keep the method, so that the unit gets the resources of a real quantization.
    """
    if not scheme.is_quantized:
        return scheme
    if keep_method:
        return replace(scheme, tool=SYNTHETIC)
    return replace(scheme, tool=SYNTHETIC, method=SYNTHETIC, needs_calibration=False)


def split_group_size(name: str) -> tuple[str, int | None]:
    """Split a name into scheme and group size: ('gptq-w4a16', 64) for 'gptq-w4a16-g64'."""
    match = _GROUP_SUFFIX.fullmatch(name)
    return (match["base"], int(match["group_size"])) if match else (name, None)


@dataclass(frozen=True, kw_only=True)
class GroupSizeProblem:
    """A group size that does not divide the inputs of every layer.

    Attributes:
        scheme: The scheme.
        linear: The first layer whose inputs it does not divide.
        prefix: Name of the list of blocks.
        fitting: The same scheme with the largest usual group size that fits; None: none fits.
    """

    scheme: Scheme
    linear: Linear
    fitting: Scheme | None
    prefix: str = "model.layers"

    def sentence(self, model_id: str, *, names_layer: bool = False) -> str:
        """Return the message for a user, with a scheme that fits.

        Args:
            model_id: Id or path of the model.
            names_layer: Name the layer, for readers of a log.
        """
        model, layer = model_id.rstrip("/").rsplit("/", 1)[-1], f" ({self.prefix}.*.{self.linear.name})"
        if self.fitting:
            hint = f"Try '{self.fitting.name}'."
        elif has_free_group_size(self.scheme):
            hint = "None of the usual group sizes divides its layers: choose a scheme with scales per channel."
        else:
            hint = "The format has no other size: choose a scheme with scales per channel, such as 'fp8-dynamic'."
        return (
            f"'{self.scheme.name}' cannot quantize {model}: {self.linear.in_features} is not a multiple of"
            f" {self.scheme.group_size}{layer if names_layer else ''}. {hint}"
        )


def group_size_problem(scheme: Scheme, shape: ModelShape) -> GroupSizeProblem | None:
    """Return the problem of the scheme's group size with this model; None: it fits, or nothing is quantized."""
    linear = None if scheme.tool == SYNTHETIC else indivisible_linear(scheme, quantized_linears(scheme, shape))
    if linear is None:
        return None
    return GroupSizeProblem(scheme=scheme, linear=linear, fitting=_fitting_scheme(scheme, shape), prefix=shape.prefix)


def with_fitting_group_size(scheme: Scheme, shape: ModelShape) -> Scheme:
    """Return the scheme, with the largest usual group size that fits the model if its own does not."""
    problem = group_size_problem(scheme, shape)
    return problem.fitting or scheme if problem else scheme


def is_ignored(name: str, scheme: Scheme) -> bool:
    """Return whether the scheme does not quantize the named layer. It lists names, and patterns after "re:"."""
    return matches(name, scheme.ignore)


def has_uniform_blocks(scheme: Scheme) -> bool:
    """Return whether the scheme treats equal blocks alike: it ignores at most the head."""
    return not scheme.is_quantized or set(scheme.ignore) <= {HEAD}


def quantized_linears(scheme: Scheme, shape: ModelShape) -> tuple[Linear, ...]:
    """Return the different linear layers of the blocks that the scheme quantizes in at least one block."""
    if has_uniform_blocks(scheme):
        return shape.quantizable
    found = {
        linear: None
        for index, block in enumerate(shape.blocks)
        for linear in block.quantizable
        if not is_ignored(shape.linear_name(index, linear), scheme)
    }
    return tuple(found)


def indivisible_linear(scheme: Scheme, linears: Iterable[Linear]) -> Linear | None:
    """Return the first of `linears` whose inputs the group size does not divide; None: it divides all of them."""
    if not scheme.is_quantized or scheme.granularity not in ("group", "block") or scheme.group_size is None:
        return None
    return next((linear for linear in linears if linear.in_features % scheme.group_size), None)


def _fitting_scheme(scheme: Scheme, shape: ModelShape) -> Scheme | None:
    if not has_free_group_size(scheme):
        return None
    base = split_group_size(scheme.name)[0]
    sized = (replace(scheme, name=f"{base}-g{size}", group_size=size) for size in _USUAL_GROUP_SIZES)
    return next((one for one in sized if indivisible_linear(one, quantized_linears(one, shape)) is None), None)


def method_names(tool: str | None = None) -> tuple[str, ...]:
    """Return the methods of a tool, or of all tools, in the registry's order."""
    known = {UNQUANTIZED: (UNQUANTIZED,), **{name: info.methods for name, info in quantizers().items()}}
    offered = known.values() if tool is None else [known.get(tool, ())]
    return tuple(dict.fromkeys(method for methods in offered for method in methods))


def _rows() -> dict[str, dict[str, Any]]:
    """Return the catalog's rows by name, with the fields of their bases."""
    rows = {**catalog_rows("schemes.toml"), **catalog_rows("tool_schemes.toml")}

    def complete(row: dict[str, Any]) -> dict[str, Any]:
        own = {key: value for key, value in row.items() if key != "base"}
        return {**complete(rows[row["base"]]), **own} if "base" in row else own

    return {name: complete(row) for name, row in rows.items()}


@lru_cache(maxsize=8)
def _schemes(plugins: tuple[Plugin, ...]) -> dict[str, Scheme]:
    """Return the schemes of the catalog, then those of `plugins`. Names must be unique."""
    found = {name: make_scheme(name=name, **row) for name, row in _rows().items()}
    origins = dict.fromkeys(found, "hpcq")
    for plugin in plugins:
        for name, row in plugin.rows(Group.SCHEMES.table).items():
            if name in origins:
                raise plugin.error(f"[schemes.{name}]: {origins[name]} has one of that name: rename it")
            try:
                found[name] = _declared(name, row)
            except RowError as error:
                raise plugin.error(f"[schemes.{name}]: {error}") from error
            origins[name] = plugin.title
    return found


def _declared(name: str, row: dict[str, Any]) -> Scheme:
    """Return a plugin's scheme.

    Raises:
        RowError: A field is invalid.
    """
    scheme = make_record(Scheme, row, name=name, needs_calibration=False, checkpoint_format=None)
    for field, value, allowed in (
        ("tool", scheme.tool, tuple(quantizers())),
        ("method", scheme.method, method_names(scheme.tool)),
        ("weights", scheme.weights, get_args(NumberFormat)),
        ("activations", scheme.activations, get_args(NumberFormat)),
        ("granularity", scheme.granularity, get_args(Granularity)),
    ):
        if value not in allowed:
            raise RowError(f"'{field}' must be one of {', '.join(allowed)}, not '{value}'")
    for problem in filter(None, map(entry_problem, scheme.ignore)):
        raise RowError(f"'ignore': {problem.removesuffix('.')}")
    if (scheme.granularity in ("group", "block")) != (scheme.group_size is not None):
        raise RowError("'group_size' belongs to granularity 'group' or 'block'")
    if (contradiction := format_problem(scheme)) is not None:
        raise RowError(f"'{contradiction[0]}' {contradiction[1].removesuffix('.')}")
    return make_scheme(**{key: value for key, value in vars(scheme).items() if key != "needs_calibration"})
