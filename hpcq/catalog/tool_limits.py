"""What each quantization tool supports, besides llmcompressor: number formats, settings, widths of layers, families.

The planner and the workers read this module, so that what a tool refuses after hours is refused before a job is
submitted. Sources: AutoGPTQ 0.7.1 (BaseQuantizeConfig, qlinear), AutoAWQ 0.2.9 (WQLinear_GEMM), gptqmodel 7.6.0
(quantization/config.py), auto-round 0.15.1 (export_to_autogptq), bitsandbytes 0.50.2 with transformers 5.17.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hpcq.catalog.model_shape import HEAD, ModelShape
from hpcq.catalog.toml_rows import catalog_rows
from hpcq.core.frozen import dataclass
from hpcq.core.sentences import listed
from hpcq.core.work_records import Scheme

Config = Mapping[str, Any]

_INTEGERS = ("int2", "int3", "int4", "int8")
_ONLY_TOOLS = ("int2", "int3", "nf4", "fp4")
"""Formats that llmcompressor does not write."""


@dataclass(frozen=True, kw_only=True)
class ToolLimits:
    """What a tool supports.

    Attributes:
        title: Name of the tool.
        weights: Number formats of weights, by method.
        instead: What to choose for another number format, as a clause.
        granularities: Granularities of the scales.
        symmetric: Required `symmetric`; None: any.
        symmetric_reason: Why, as a clause with the fix.
        multiple: Numbers of inputs and outputs of every layer must be multiples of it.
        expert_families: Families of mixtures of experts that were measured (python -m tests.quantizer_tools). gptqmodel
            saves the experts of others, such as Mixtral, under names that transformers does not read. AutoRound and
            bitsandbytes leave experts unquantized, which transformers 5 has in one tensor.
    """

    title: str
    weights: Mapping[str, tuple[str, ...]]
    instead: str
    granularities: tuple[str, ...] = ("group", "channel")
    symmetric: bool | None = None
    symmetric_reason: str = ""
    multiple: int = 1
    expert_families: tuple[str, ...] = ()


LIMITS: Mapping[str, ToolLimits] = {
    "autogptq": ToolLimits(
        title="AutoGPTQ",
        weights={"gptq": _INTEGERS},
        instead="choose one of these, or a scheme of llmcompressor",
        multiple=32,
        expert_families=("mixtral",),
    ),
    "autoawq": ToolLimits(
        title="AutoAWQ",
        weights={"awq": ("int4",)},
        instead="choose autoawq:awq-w4a16, or gptq-w8a16 for 8 bits",
        granularities=("group",),
        symmetric=False,
        symmetric_reason="its format GEMM needs zero points: set symmetric = false, or choose gptq-w4a16",
        multiple=8,
        expert_families=("mixtral",),
    ),
    "gptqmodel": ToolLimits(
        title="gptqmodel",
        weights={"gptq": _INTEGERS, "awq": ("int4",)},
        instead="choose one of these, or a scheme of llmcompressor",
        multiple=32,
        expert_families=("olmoe", "qwen2_moe", "qwen3_moe"),
    ),
    "autoround": ToolLimits(
        title="AutoRound",
        weights={"autoround": _INTEGERS},
        instead="choose one of these, or a scheme of llmcompressor",
        symmetric=True,
        symmetric_reason=(
            "with zero points, its GPTQ format is ambiguous between tools: set symmetric = true, or choose "
            "gptqmodel:awq-w4a16"
        ),
        multiple=32,
    ),
    "bitsandbytes": ToolLimits(
        title="bitsandbytes",
        weights={"rtn": ("nf4", "fp4"), "llm-int8": ("int8",)},
        instead="choose bitsandbytes:nf4, bitsandbytes:fp4 or bitsandbytes:int8",
    ),
}
_ACTIVATIONS = {"llm-int8": ("int8",)}
_BLOCK = 64
"""Weights per block of bitsandbytes' four-bit formats in transformers, which sets no other size."""


def scheme_problems(scheme: Scheme) -> Iterator[tuple[str, str]]:
    """Yield the field of a scheme that its tool does not support, and why, with the fix, as a sentence."""
    if scheme.damping is not None and scheme.tool in LIMITS and not 0 < scheme.damping < 1:
        yield "damping", "must be greater than 0 and less than 1."
    limits = LIMITS.get(scheme.tool)
    if limits is None:
        if scheme.tool == "llmcompressor" and scheme.weights in _ONLY_TOOLS:
            yield "weights", f"llmcompressor does not write '{scheme.weights}': choose a scheme of another tool."
        return
    yield from _format_problems(scheme, limits)
    title = limits.title
    if limits.symmetric is not None and scheme.symmetric != limits.symmetric:
        yield "symmetric", f"{title}: {limits.symmetric_reason}."
    if scheme.ignore != (HEAD,):
        fix = "remove 'ignore', or choose a scheme of llmcompressor"
        yield "ignore", f"{title} quantizes every linear layer outside the head: {fix}."


def _format_problems(scheme: Scheme, limits: ToolLimits) -> Iterator[tuple[str, str]]:
    title, allowed = limits.title, limits.weights.get(scheme.method)
    if allowed is None:
        return  # the method is refused by another check
    if scheme.weights not in allowed:
        yield "weights", f"{title} writes only {', '.join(allowed)} with '{scheme.method}': {limits.instead}."
    activations = _ACTIVATIONS.get(scheme.method, ("bf16",))
    if scheme.activations not in activations:
        yield "activations", f"{title} does not quantize activations as '{scheme.activations}': set '{activations[0]}'."
    if scheme.granularity not in limits.granularities:
        allowed_text = " or ".join(f"'{one}'" for one in limits.granularities)
        yield "granularity", f"{title} needs scales per {allowed_text}, not '{scheme.granularity}'."
    if scheme.weights in ("nf4", "fp4") and scheme.group_size != _BLOCK:
        yield "group_size", f"bitsandbytes has blocks of {_BLOCK} weights: remove the group size."


def family_problem(config: Config, scheme: Scheme, *, with_experts: bool) -> str | None:
    """Return why the scheme's tool cannot quantize a model with this configuration, as a clause with the fix.

    Args:
        config: Content of config.json.
        scheme: The scheme.
        with_experts: The model is a mixture of experts.
    """
    limits, family = LIMITS.get(scheme.tool), str(config.get("model_type"))
    if limits is None:
        return None
    row = catalog_rows("tool_families.toml").get(scheme.tool)
    if row and family not in row["model_types"]:
        return f"{limits.title} has no class for '{family}': choose {' or '.join(row['instead'])}"
    if with_experts and family not in limits.expert_families:
        known = listed(limits.expert_families)
        does = f"quantizes only the experts of {known}" if known else "does not quantize experts"
        return f"{limits.title} {does}: choose gptq-w4a16 or fp8-dynamic"
    return None


def width_problem(scheme: Scheme, shape: ModelShape) -> str | None:
    """Return the layers that are too narrow for the tool's packing, as a clause with the fix; None: all fit."""
    limits = LIMITS.get(scheme.tool)
    if limits is None:
        return None
    size = limits.multiple
    wrong = [one.name for one in shape.quantizable if one.in_features % size or one.out_features % size]
    if not wrong:
        return None
    return (
        f"{limits.title} packs inputs and outputs in multiples of {size}, and {listed(wrong)} has others: choose a "
        "scheme of llmcompressor"
    )
