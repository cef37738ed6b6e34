"""Versions of a tool's distributions that are part of a content address."""

from __future__ import annotations

import json
import subprocess
from collections import defaultdict
from functools import lru_cache

from hpcq.catalog.plugins import environment_names, lock_folder, pinned_version
from hpcq.catalog.tools import ToolInfo
from hpcq.core import environments
from hpcq.core.errors import SetupError
from hpcq.core.work_records import EvaluateWork, QuantizeWork, Versions
from hpcq.manifest import ResolvedManifest
from hpcq.plan.units import Plan

MERGE_ENVIRONMENT = "transformers"
SYNTHETIC_ENVIRONMENT = "core"

_QUERY = """
import importlib.metadata, json, re
names = [dist.metadata["Name"] for dist in importlib.metadata.distributions()]
print(json.dumps({re.sub(r"[-_.]+", "-", name).lower(): importlib.metadata.version(name) for name in names if name}))
"""
_QUERY_TIMEOUT_S = 120


def versions_of(tool: ToolInfo, environment: str, resolved: ResolvedManifest) -> Versions:
    """Return the tool's versions from the manifest's lock file, or else from the environment.

    Raises:
        SetupError: The environment is unknown, or does not contain one of the tool's distributions.
    """
    recorded = dict(resolved.locked_versions.get(environment, ()))
    if recorded:
        relevant = (*tool.distributions, *tool.alternative_builds)
        found = {name: version for name, version in recorded.items() if name in relevant}
    elif environment == environments.CORE_ENVIRONMENT and not environments.IS_CHECKOUT:
        settings = resolved.profile.environments.get(environment)
        python = (settings and settings.python) or str(environments.interpreter(environment))
        found = _installed(tool, environment, python)
    elif environment in environment_names():
        found = _locked(tool, environment)
    else:
        found = _installed(tool, environment, _profile_python(tool, environment, resolved))
    if tool.plugin:
        # In the environment's lock, or else the version that is installed here, whose package jobs have on their path.
        own = tool.plugin.distribution
        found[own] = recorded.get(own) or pinned_version(own, environment) or tool.plugin.version
    return tuple(sorted(found.items()))


def _locked(tool: ToolInfo, environment: str) -> dict[str, str]:
    locks = lock_folder(environment)
    pinned = environments.pins(environment, locks)
    # If no build is pinned, request the first, so that the error message names the tool.
    build = [name for name in tool.alternative_builds if name in pinned][:1] or tool.alternative_builds[:1]
    return dict(environments.locked_versions(environment, [*tool.distributions, *build], locks))


def _profile_python(tool: ToolInfo, environment: str, resolved: ResolvedManifest) -> str:
    """Return the interpreter of an environment that only the cluster profile knows."""
    settings = resolved.profile.environments.get(environment)
    if settings is None or settings.python is None:
        raise SetupError(
            f"'{tool.name}' ({tool.origin}) runs in the environment '{environment}', which has no lock file: add"
            f" [environments.{environment}] with its python to the cluster profile."
        )
    return settings.python


def _installed(tool: ToolInfo, environment: str, python: str) -> dict[str, str]:
    """Return the versions that an interpreter reports. An installed hpcq has no lock of its own environment."""
    if not tool.distributions:
        return {}
    installed = _query(python)
    build = [name for name in tool.alternative_builds if name in installed][:1] or tool.alternative_builds[:1]
    wanted = (*tool.distributions, *build)
    missing = [name for name in wanted if name not in installed]
    if missing:
        raise SetupError(
            f"{python}: the environment '{environment}' has no {', '.join(missing)}, which '{tool.name}'"
            f" ({tool.origin}) needs: install it."
        )
    return {name: installed[name] for name in wanted}


@lru_cache
def _query(python: str) -> dict[str, str]:
    """Return name and version of all distributions of an interpreter. It is isolated from this one's variables."""
    command = [python, "-I", "-c", _QUERY]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_QUERY_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise SetupError(
            f"{python}: this interpreter cannot be started here to read its versions ({error}). Correct its path in the"
            " cluster profile."
        ) from error
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


def versions_by_environment(plan: Plan) -> dict[str, Versions]:
    """Return all versions that are part of an address of the plan, for the lock file."""
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for unit in plan.units:
        if isinstance(unit.work, QuantizeWork):
            found[unit.environment].update(unit.work.variant.versions)
        elif isinstance(unit.work, EvaluateWork):
            found[unit.environment].update(unit.work.versions)
    return {environment: tuple(sorted(versions)) for environment, versions in found.items()}
