"""Export in the format of Every Eval Ever 0.3: one JSON record of scores per variant, at its place in their data store.

The format has records of single items, too, but needs their prompts, which `results.h5` does not have.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcq import __version__
from hpcq.catalog.main_metrics import is_share
from hpcq.core.files import make_folder, write_text
from hpcq.report.clean_text import valid_unicode
from hpcq.report.exports.variants import ExportedVariant, exported_variants, file_name
from hpcq.report.make_report import MergedRun
from hpcq.report.rows import UNQUANTIZED_TOOL
from hpcq.store import Score

_SCHEMA = "0.3.0"
_LOCAL = "local"
"""Developer of a model without an organization: a folder."""
_ORGANIZATION = "unknown"


def export_every_eval_ever(runs: Sequence[MergedRun], folder: Path) -> Iterator[Path]:
    """Write `data/<run>/<developer>/<model>/<uuid>.json` for each variant below `folder`, and yield the paths.

    Args:
        runs: The runs.
        folder: Folder to write to; it is created.

    Raises:
        RunIncompleteError: A run has no merged results yet.
        StorageError: The files cannot be written.
    """
    for run in runs:
        for own in exported_variants([run], folder, has_folders=False):
            if not own.scores.scores:
                continue
            model = _model_id(own)
            place = folder / "data" / file_name(run.name) / model.partition("/")[0] / model.partition("/")[2]
            make_folder(place)
            path = place / f"{_record_id(run.name, own)}.json"
            write_text(path, json.dumps(valid_unicode(_record(run.name, own, model)), indent=2) + "\n")
            yield path


def _record_id(run: str, own: ExportedVariant) -> uuid.UUID:
    """Return a UUID of version 4, which their validator demands; the same results have the same one."""
    identity = f"{run}/{own.scores.variant}/{own.when.timestamp()}"
    return uuid.UUID(bytes=hashlib.sha256(identity.encode()).digest()[:16], version=4)


def _model_id(own: ExportedVariant) -> str:
    """Return organization and name; of a variant that hpcq quantized, with the scheme."""
    found = own.fact("checkpoint") or own.fact("model")
    organization, _, name = found.rpartition("/")
    is_folder = organization.startswith(("/", ".")) or not organization
    quantized = own.fact("tool") != UNQUANTIZED_TOOL and not own.fact("checkpoint")
    suffix = f"-{own.fact('scheme')}" if quantized else ""
    return f"{_LOCAL if is_folder else file_name(organization)}/{file_name(f'{name}{suffix}')}"


def _record(run: str, own: ExportedVariant, model: str) -> dict[str, Any]:
    second = str(int(own.when.timestamp()))
    versions = own.document("backend_versions") or {}
    engine = own.model_type if own.model_type in versions else "transformers"
    members = {task: share.group for share in own.items.groups for task in share.shares}
    settings = {task["name"]: task for task in own.document("tasks") or ()}
    settings |= {task: settings[group] for task, group in members.items() if group in settings and task not in settings}
    return {
        "schema_version": _SCHEMA,
        "evaluation_id": f"{run}/{model}/{second}",
        "retrieved_timestamp": second,
        "source_metadata": {
            "source_name": f"hpcq run {run}",
            "source_type": "evaluation_run",
            "source_organization_name": _ORGANIZATION,
            "evaluator_relationship": "third_party",
            "additional_details": {"hpcq": __version__},
        },
        "eval_library": {
            "name": "lm_eval",
            "version": str(versions.get("lm-eval", "unknown")),
            "additional_details": _texts({"run_by": f"hpcq {__version__}", **own.origin}),
        },
        "model_info": {
            "name": own.model_name,
            "id": model,
            "inference_engine": {"name": engine, "version": str(versions.get(engine, "unknown"))},
            "additional_details": _texts(
                {
                    "deployment_type": "self_deployed",
                    "model_availability": "open_weights",
                    "base_model": own.fact("model"),
                    "base_model_revision": own.fact("model_revision"),
                    "base_model_digest": own.fact("model_digest"),
                    "quantization_scheme": own.fact("scheme"),
                    "quantization_tool": own.fact("tool"),
                    "quantization_recipe": own.fact("recipe"),
                    "dtype": own.fact("dtype"),
                    "device": own.fact("device"),
                }
            ),
        },
        "evaluation_results": [_result(own, score, settings.get(score.task, {})) for score in own.scores.scores],
    }


def _result(own: ExportedVariant, score: Score, settings: Mapping[str, Any]) -> dict[str, Any]:
    share = is_share(score.metric)
    main = (own.document("main_metrics") or {}).get(score.task, {})
    uncertainty = {"standard_error": {"value": score.stderr}} if score.stderr is not None else {}
    return {
        "evaluation_result_id": f"{score.task}#{score.metric}#{score.filter}",
        "evaluation_name": score.task,
        "source_data": _source(score, settings),
        "metric_config": {
            "metric_id": score.metric,
            "metric_name": score.metric,
            "metric_unit": "proportion" if share else "points",
            "metric_parameters": {"filter": score.filter},
            "lower_is_better": bool(main.get("lower_is_better", False)),
            "score_type": "continuous",
            "min_score": 0.0 if share else "-Infinity",
            "max_score": 1.0 if share else "Infinity",
        },
        "score_details": {
            "score": score.value,
            "uncertainty": {**uncertainty, "num_samples": score.n},
        },
        "generation_config": {"additional_details": _texts(settings)},
    }


def _source(score: Score, settings: Mapping[str, Any]) -> dict[str, Any]:
    details = _texts({"documents": score.n, "data_digest": settings.get("data_digest")})
    revisions = settings.get("data_revisions") or ()
    if not revisions:
        return {"dataset_name": score.task, "source_type": "other", "additional_details": details}
    repository, commit = revisions[0]
    return {
        "dataset_name": score.task,
        "source_type": "hf_dataset",
        "hf_repo": repository,
        "additional_details": {**details, "revision": commit},
    }


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the values as texts, which the format demands; empty ones are left out."""
    return {
        name: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for name, value in values.items()
        if value not in (None, "", (), [], {})
    }
