"""Fit table of docs/fit.md: the GPUs that each model of the catalog needs, by scheme and type of GPU.

The table shows the planner's placements on clusters with one type of GPU.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from hpcq.catalog.gpus import gpu_names
from hpcq.catalog.model_shape import ModelShape
from hpcq.catalog.models import find_model_shape, model_ids
from hpcq.catalog.schemes import find_scheme, with_fitting_group_size
from hpcq.manifest.profiles import GpuClass, Profile
from hpcq.plan.memory.gpu_memory import TYPICAL_LENGTH, MemoryDemand
from hpcq.plan.placement.candidates import PlacementError, place_evaluation
from hpcq.plan.placement.requirements import EvaluationRequirements

SCHEMES = ("bf16", "fp8", "smoothquant-w8a8", "gptq-w8a16", "gptq-w4a16", "awq-w4a16")
GPUS_PER_NODE = 8
NODES = 4
DOES_NOT_FIT = "–"
DEVIATES_FROM_SCHEME = "*"
EXPERT_PARALLEL = "e"

_DEMAND = MemoryDemand()


def fit_table() -> str:
    """Return a Markdown table: one row per model and scheme, one column per type of GPU.

    Schemes of a model with the same cells share a row.
    """
    names = gpu_names()
    lines = [f"| model | scheme | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for model in _models():
        rows: dict[tuple[str, ...], list[str]] = {}
        for scheme in SCHEMES:
            rows.setdefault(tuple(cell(model, scheme, gpu) for gpu in names), []).append(scheme)
        title = model.rsplit("/", 1)[-1]
        lines += [f"| {title} | {', '.join(schemes)} | {' | '.join(cells)} |" for cells, schemes in rows.items()]
    return "\n".join(lines) + "\n"


def cell(model: str, scheme_name: str, gpu: str) -> str:
    """Return a cell: '4' for four GPUs of one node (TP4), '8×2e' for eight in each of two nodes (TP8, PP2, EP8)."""
    shape, scheme = find_model_shape(model), find_scheme(scheme_name)
    if shape is None or scheme is None:
        return DOES_NOT_FIT
    scheme = with_fitting_group_size(scheme, shape)
    length = min(shape.context_length or TYPICAL_LENGTH, TYPICAL_LENGTH)
    demand = replace(_DEMAND, length=length)
    try:
        requirements = EvaluationRequirements(model=shape, scheme=scheme, backend="vllm", demand=demand)
        placed = place_evaluation(_cluster(gpu), requirements)
    except PlacementError:
        return DOES_NOT_FIT
    nodes = f"×{placed.shape.nodes}" if placed.shape.nodes > 1 else ""
    mark = DEVIATES_FROM_SCHEME if placed.kernel and not placed.kernel.matches_scheme else ""
    experts = EXPERT_PARALLEL if placed.shape.expert_parallel else ""
    return f"{placed.shape.gpus_per_node}{nodes}{experts}{mark}"


def _models() -> list[str]:
    """Return the first id of each shape. Models that differ only in a context of typical length or more share one."""
    first: dict[ModelShape, str] = {}
    for name in model_ids():
        shape = find_model_shape(name)
        if shape is not None:
            typical = min(shape.context_length or TYPICAL_LENGTH, TYPICAL_LENGTH)
            first.setdefault(replace(shape, context_length=typical), name)
    return list(first.values())


@cache
def _cluster(gpu: str) -> Profile:
    gpu_class = GpuClass(gpu=gpu, nodes=NODES, gpus_per_node=GPUS_PER_NODE, cpus_per_node=64, memory_gib=2000)
    return Profile(name=gpu, scheduler="slurm", gpu_classes={gpu: gpu_class})
