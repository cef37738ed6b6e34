"""Schemes as data: the recipe behind each name. The rows and their sources stand in schemes.toml.

Knows what a recipe needs of a model's shape; never imports a quantizing tool.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from hpcq.catalog.models import ModelShape
from hpcq.catalog.toml_rows import catalog_rows
from hpcq.core.work import Scheme

_GROUP_SUFFIX = re.compile(r"(?P<base>.+)-g(?P<group_size>[1-9][0-9]*)")
_USUAL_GROUP_SIZES = (128, 64, 32)
"""Those that the Marlin kernels for 4-bit weights take (vLLM)."""


_FLOATING_POINT = ("fp32", "bf16", "fp16")
_CALIBRATED_METHODS = ("gptq", "awq", "smoothquant")


def make_scheme(**fields: Any) -> Scheme:
    """A scheme of these fields; whether it needs a calibration set follows from them."""
    static = fields["activations"] not in _FLOATING_POINT and not fields.get("dynamic", False)
    needs_calibration = fields["method"] in _CALIBRATED_METHODS or (fields["method"] == "rtn" and static)
    return Scheme(
        **{**fields, "ignore": tuple(fields.get("ignore", ("lm_head",)))}, needs_calibration=needs_calibration
    )


def scheme_names() -> tuple[str, ...]:
    """Every scheme that the catalog knows by its plain name."""
    return tuple(_schemes())


def find_scheme(name: str, defined: Mapping[str, Scheme] | None = None) -> Scheme | None:
    """The scheme of that name: one of `defined`, or the catalog's, or either with a group size as in 'gptq-w4a16-g64'.

    None: unknown, or a group size on a scheme that has no groups.
    """
    known = {**_schemes(), **(defined or {})}
    if name in known:
        return known[name]
    base, group_size = split_group_size(name)
    if group_size is None or base not in known or known[base].granularity != "group":
        return None
    return replace(known[base], name=name, group_size=group_size)


def rehearsed(scheme: Scheme, *, is_sized: bool = False) -> Scheme:
    """What stands in for `scheme` in a rehearsal: as it is, but made up where it would be quantized.

    is_sized: it is placed where the real one would be, so it keeps its method.
    """
    if not scheme.is_quantized:
        return scheme
    if is_sized:
        return replace(scheme, tool="synthetic")
    return replace(scheme, tool="synthetic", method="synthetic", needs_calibration=False)


def split_group_size(name: str) -> tuple[str, int | None]:
    """A scheme's name without its group size, and the group size: ('gptq-w4a16', 64) for 'gptq-w4a16-g64'."""
    match = _GROUP_SUFFIX.fullmatch(name)
    return (match["base"], int(match["group_size"])) if match else (name, None)


def misfit(scheme: Scheme, shape: ModelShape) -> int | None:
    """The first width of a quantized linear layer's input that `scheme`'s group size does not divide; None: it fits."""
    if scheme.granularity != "group" or scheme.group_size is None or scheme.tool == "synthetic":
        return None
    inputs = (shape.hidden, shape.intermediate, shape.heads * shape.head_dim)
    return next((width for width in inputs if width % scheme.group_size), None)


def fitting_group_size(scheme: Scheme, shape: ModelShape) -> int | None:
    """The largest usual group size that fits every quantized layer; None: there is none."""
    sizes = _USUAL_GROUP_SIZES
    return next((size for size in sizes if misfit(replace(scheme, group_size=size), shape) is None), None)


@lru_cache
def _schemes() -> dict[str, Scheme]:
    return {name: make_scheme(name=name, **row) for name, row in catalog_rows("schemes.toml").items()}
