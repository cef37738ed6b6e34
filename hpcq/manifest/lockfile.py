"""Lock file of a run: the manifest with all defaults, digests, versions and the profile; itself a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import tomli_w

import hpcq
from hpcq.catalog import packages
from hpcq.catalog.schemes import find_scheme
from hpcq.core.work import Scheme, Versions
from hpcq.manifest.context import Context
from hpcq.manifest.lookups import resolve_path
from hpcq.manifest.profiles import Profile
from hpcq.manifest.resolved import ResolvedManifest

_HEADER = """\
# Resolved manifest of run '{name}', written by hpcq {version}. It is a valid manifest: plan or submit it, here or
# elsewhere. Digests are checked when it is read.

"""


def lock_text(resolved: ResolvedManifest, versions: Mapping[str, Versions] | None = None) -> str:
    """Return the lock file as TOML.

    Args:
        resolved: the resolved manifest.
        versions: tool versions by Python environment; by default those that a lock file recorded.
    """
    manifest = resolved.manifest
    document = manifest.model_dump(mode="json", exclude_none=True)
    layout, settings = resolved.layout, resolved.evaluate
    document["paths"] = {"runs": str(layout.runs), "checkpoints": str(layout.checkpoints), "logs": str(layout.logs)}
    document["cluster"]["profile"] = _profile(resolved.profile)
    document["models"] = _models(resolved)
    document["schemes"]["define"] = [_definition(scheme) for scheme in _named_schemes(resolved.context)]
    document["evaluate"]["environment"] = settings.environment
    if resolved.quantize.environment:
        document["quantize"]["environment"] = resolved.quantize.environment
    if packages.staged_calibration_path(manifest.calibration.dataset) is None:
        document["calibration"]["dataset"] = str(resolve_path(manifest.calibration.dataset, manifest))
    if resolved.calibration and resolved.calibration.digest:
        document["calibration"]["digest"] = resolved.calibration.digest
    if manifest.tasks.data not in ("hub", "packages"):
        document["tasks"]["data"] = str(resolve_path(manifest.tasks.data, manifest))
    for task in resolved.tasks:
        if task.data_digest:
            document["tasks"]["options"].setdefault(task.name, {})["digest"] = task.data_digest
    recorded = resolved.locked_versions if versions is None else versions
    document["locked"] = {
        "hpcq": hpcq.__version__,
        "versions": {environment: dict(pairs) for environment, pairs in recorded.items()},
    }
    return _HEADER.format(name=resolved.name, version=hpcq.__version__) + tomli_w.dumps(document)


def _profile(profile: Profile) -> dict[str, Any]:
    unused = "slurm" if profile.scheduler == "local" else "local"
    return profile.model_dump(mode="json", exclude_none=True, exclude={unused})


def _models(resolved: ResolvedManifest) -> list[dict[str, Any]]:
    manifest = resolved.manifest
    digests = {(model.id, model.revision): model.digest for model, _ in resolved.pairs}
    entries = []
    for model in resolved.context.models:
        entry = model.entry
        row = entry.model_dump(mode="json", exclude_none=True)
        row["id"] = model.id
        row["schemes"] = [use.name for use in model.schemes]
        if entry.path is not None:
            row["path"] = str(resolve_path(entry.path, manifest))
        digest = digests[row["id"], entry.revision]
        entries.append({**row, "digest": digest} if digest else row)
    return entries


def _named_schemes(context: Context) -> list[Scheme]:
    """Return every scheme that the manifest names, as the current catalog and `schemes.define` define it."""
    of_models = {use.name: use.scheme for model in context.models for use in model.schemes}
    unused = {name: find_scheme(name, context.defined_schemes) for name in context.manifest.schemes.use}
    return [scheme for scheme in {**unused, **of_models}.values() if scheme]


def _definition(scheme: Scheme) -> dict[str, Any]:
    fields = {key: value for key, value in asdict(scheme).items() if value is not None and key != "needs_calibration"}
    return {**fields, "ignore": list(scheme.ignore)}
