"""Contradictions between the number formats of a scheme: what no checkpoint of compressed-tensors (0.19) can store."""

from __future__ import annotations

from collections.abc import Iterator

from hpcq.catalog.number_formats import GROUP_SIZES, UNQUANTIZED
from hpcq.core.work_records import Scheme

_FLOAT8 = "fp8_e4m3"


def format_problem(scheme: Scheme) -> tuple[str, str] | None:
    """Return the field that contradicts others and a sentence about it; None: the formats fit together."""
    return next(_problems(scheme), None)


def _problems(scheme: Scheme) -> Iterator[tuple[str, str]]:
    weights, activations = scheme.weights, scheme.activations
    size, is_block = GROUP_SIZES.get(weights), scheme.granularity == "block"
    if size is not None and (scheme.granularity, scheme.group_size) != ("group", size):
        yield "group_size", f"must be {size} with granularity 'group', which {weights} requires."
    if activations in GROUP_SIZES and weights != activations:
        yield "activations", f"'{activations}' requires weights '{activations}', not '{weights}'."
    if size is not None and activations not in (weights, *UNQUANTIZED):
        yield "activations", f"'{activations}' cannot be combined with weights '{weights}': use '{weights}' or 'bf16'."
    if is_block and weights != _FLOAT8:
        yield "granularity", f"'block' requires weights '{_FLOAT8}', not '{weights}'."
    if is_block and activations not in (_FLOAT8, *UNQUANTIZED):
        yield "activations", f"'{activations}' cannot be combined with granularity 'block': use '{_FLOAT8}' or 'bf16'."
    if (activations in GROUP_SIZES or (is_block and activations == _FLOAT8)) and not scheme.dynamic:
        what = "granularity 'block'" if is_block else f"activations '{activations}'"
        yield "dynamic", f"must be true with {what}: its scales are computed at run time."
    if not scheme.symmetric and not weights.startswith("int"):
        yield "symmetric", f"must be true with weights '{weights}': only integers have zero points."
