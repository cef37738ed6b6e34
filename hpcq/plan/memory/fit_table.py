"""The fit table, as Markdown: on how many GPUs of each kind every model of the catalog fits, by scheme.

Asks the planner itself, of clusters that have one kind of GPU each; knows nothing of memory.
"""

from __future__ import annotations

from functools import cache

from hpcq.catalog.gpus import gpu_names
from hpcq.catalog.models import find_shape, model_ids
from hpcq.catalog.schemes import find_scheme, fitting_group_size
from hpcq.manifest.profiles import GpuClass, Profile
from hpcq.plan.memory.gpu_memory import ORDINARY_LENGTH, Demand
from hpcq.plan.placement.place import place_evaluation
from hpcq.plan.placement.records import CannotPlace, Evaluation

SCHEMES = ("bf16", "fp8", "smoothquant-w8a8", "gptq-w8a16", "gptq-w4a16", "awq-w4a16")
GPUS_PER_NODE = 8
NODES = 4
NOWHERE = "–"
UNFAITHFUL = "*"

_DEMAND = Demand()


def fit_table() -> str:
    """A table with a row a model and scheme, and a column a kind of GPU; schemes alike in everything share a row."""
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
    """'4' is four GPUs of a node by tensor parallelism, '8×2' eight in each of two nodes, one stage each."""
    shape, scheme = find_shape(model), find_scheme(scheme_name)
    if shape is None or scheme is None:
        return NOWHERE
    if scheme.granularity == "group":
        size = fitting_group_size(scheme, shape)
        scheme = find_scheme(f"{scheme_name}-g{size}") or scheme
    demand = _DEMAND if shape.context >= ORDINARY_LENGTH else Demand(length=shape.context)
    try:
        placed = place_evaluation(_cluster(gpu), Evaluation(model=shape, scheme=scheme, backend="vllm", demand=demand))
    except CannotPlace:
        return NOWHERE
    nodes = f"×{placed.shape.nodes}" if placed.shape.nodes > 1 else ""
    mark = UNFAITHFUL if placed.kernel and not placed.kernel.faithful else ""
    return f"{placed.shape.gpus_per_node}{nodes}{mark}"


def _models() -> list[str]:
    """One id of each shape, the first; a model that differs in its context alone is planned alike."""
    first: dict[tuple[object, ...], str] = {}
    for name in model_ids():
        shape = find_shape(name)
        if shape is not None:
            first.setdefault((shape.parameters, shape.linears, min(shape.context, ORDINARY_LENGTH)), name)
    return list(first.values())


@cache
def _cluster(gpu: str) -> Profile:
    offer = GpuClass(gpu=gpu, nodes=NODES, gpus_per_node=GPUS_PER_NODE, cpus_per_node=64, memory_gib=2000)
    return Profile(name=gpu, scheduler="slurm", gpu_classes={gpu: offer})
