"""Lock file of a run: the manifest with all defaults, digests, versions and the profile; itself a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w

import hpcq
from hpcq.catalog import packages
from hpcq.catalog.schemes import find_scheme
from hpcq.core.work_records import Calibration, Checkpoint, FidelityPanel, Scheme, Versions
from hpcq.manifest.context import Context, NamedModel
from hpcq.manifest.lookups import resolve_path
from hpcq.manifest.pins import text_repository
from hpcq.manifest.profiles import Profile
from hpcq.manifest.resolved import ResolvedManifest
from hpcq.manifest.schema import DATA_SOURCES, TextSection

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
    document = resolved.manifest.model_dump(mode="json", exclude_none=True)
    document["paths"] |= _paths(resolved)
    document["cluster"]["profile"] = _profile(resolved.profile)
    document["data"] |= _data(resolved)
    document["models"] = _models(resolved)
    document["schemes"]["define"] = [_definition(scheme) for scheme in _named_schemes(resolved.context)]
    document["evaluate"]["environment"] = resolved.evaluate.environment
    if resolved.quantize.environment:
        document["quantize"]["environment"] = resolved.quantize.environment
    document["calibration"] |= _text(resolved, resolved.manifest.calibration, resolved.calibration)
    if resolved.manifest.fidelity:
        document["fidelity"] |= _text(resolved, resolved.manifest.fidelity, resolved.panel)
    if resolved.manifest.tasks.data not in DATA_SOURCES:
        document["tasks"]["data"] = str(resolve_path(resolved.manifest.tasks.data, resolved.manifest))
    copied = (task.definition_copies for task in resolved.tasks if task.definitions)
    document["tasks"]["include"] = list(next(copied, ()))
    for task in resolved.tasks:
        if task.data_digest:
            document["tasks"]["options"].setdefault(task.name, {})["digest"] = task.data_digest
        if task.items and task.items.listed:
            document["tasks"]["options"][task.name]["items"] = dict(task.items.listed)
    recorded = resolved.locked_versions if versions is None else versions
    document["locked"] = {
        "hpcq": hpcq.__version__,
        "repositories": [row.model_dump(mode="json", exclude_none=True) for row in resolved.context.pins.locked()],
        "versions": {environment: dict(pairs) for environment, pairs in recorded.items()},
    }
    return _HEADER.format(name=resolved.name, version=hpcq.__version__) + tomli_w.dumps(document)


def _paths(resolved: ResolvedManifest) -> dict[str, str]:
    layout, cache = resolved.layout, resolved.manifest.paths.cache
    paths = {"runs": layout.runs, "checkpoints": layout.checkpoints, "logs": layout.logs}
    if cache:
        paths["cache"] = Path(cache).expanduser().absolute()
    return {name: str(path) for name, path in paths.items()}


def _data(resolved: ResolvedManifest) -> dict[str, Any]:
    manifest = resolved.manifest
    if manifest.data.mirror:
        return {"mirror": str(resolve_path(manifest.data.mirror, manifest))}
    return {"revisions": manifest.data.revisions | {k: v for task in resolved.tasks for k, v in task.data_revisions}}


def _text(resolved: ResolvedManifest, section: TextSection, text: Calibration | FidelityPanel | None) -> dict[str, str]:
    """Return the location of a text, and its digest, or its commit if it is on the hub."""
    manifest = resolved.manifest
    repository = text_repository(section, manifest)
    if repository is not None:
        return {"revision": resolved.context.pins.commit(repository) or repository.requested}
    found = {}
    if packages.staged_calibration_path(section.dataset) is None:
        found["dataset"] = str(resolve_path(section.dataset, manifest))
    if text and text.digest:
        found["digest"] = text.digest
    return found


def _profile(profile: Profile) -> dict[str, Any]:
    unused = "slurm" if profile.scheduler == "local" else "local"
    return profile.model_dump(mode="json", exclude_none=True, exclude={unused})


def _models(resolved: ResolvedManifest) -> list[dict[str, Any]]:
    manifest = resolved.manifest
    digests = {model.id: model.digest for model in resolved.shapes if model.digest}
    pinned = {variant.checkpoint.path: variant.checkpoint for variant in resolved.foreign if variant.checkpoint}
    entries = []
    for model in resolved.context.models:
        entry = model.entry
        row = entry.model_dump(mode="json", exclude_none=True, exclude={"checkpoints", "checkpoint_digests"})
        row["id"] = model.id
        row["schemes"] = [use.name for use in model.schemes]
        if entry.path is not None:
            row["path"] = str(resolve_path(entry.path, manifest))
        if model.commit is not None:
            row["revision"] = model.commit
        row |= _checkpoints(model, pinned)
        digest = digests.get(model.id)
        entries.append({**row, "digest": digest} if digest else row)
    return entries


def _checkpoints(model: NamedModel, pinned: Mapping[str | None, Checkpoint]) -> dict[str, Any]:
    """Return the checkpoints that others quantized: absolute folders with digests, ids on the hub with commits."""
    texts, digests = [], {}
    for named in model.checkpoints:
        found = pinned.get(str(named.folder)) if named.folder else None
        text = str(named.folder) if not named.is_on_hub else f"{named.id}@{named.revision}" if found else named.text
        texts.append(text)
        if found and found.digest:
            digests[text] = found.digest
    rows: dict[str, Any] = {"checkpoints": texts, "checkpoint_digests": digests}
    return {key: value for key, value in rows.items() if value}


def _named_schemes(context: Context) -> list[Scheme]:
    """Return every scheme that the manifest names, as the current catalog and `schemes.define` define it."""
    of_models = {use.name: use.scheme for model in context.models for use in model.schemes}
    unused = {name: find_scheme(name, context.defined_schemes) for name in context.manifest.schemes.use}
    return [scheme for scheme in {**unused, **of_models}.values() if scheme]


def _definition(scheme: Scheme) -> dict[str, Any]:
    omitted = ("checkpoint_format", "mappings", "needs_calibration")  # the first and the last follow from the others
    fields = {key: value for key, value in asdict(scheme).items() if value is not None and key not in omitted}
    fields["ignore"] = list(scheme.ignore)
    mappings = [{"smooth": one.smooth, "balance": list(one.balance)} for one in scheme.mappings]
    return {**fields, "mappings": mappings} if mappings else fields
