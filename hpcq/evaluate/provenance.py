"""Provenance of responses: the attributes of a segment."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from hpcq import __version__
from hpcq.core.attempts import Attempt
from hpcq.core.environments import NAME_VARIABLE, PACKAGE_VARIABLE
from hpcq.core.work_records import EvaluateWork
from hpcq.evaluate.variant_facts import CHECKPOINT_FACTS, marked_facts

Provenance = dict[str, str | int | float]


def segment_provenance(work: EvaluateWork, attempt: Attempt, backend_description: Provenance) -> Provenance:
    """Return the attributes that every segment of this attempt carries."""
    record = attempt.record
    return {
        "hpcq": __version__,
        "unit": record.unit,
        "attempt": record.attempt,
        "attempt_start": record.start,
        "job_id": record.job_id,
        "node": record.node,
        "gpu_class": str((record.facts.get("planned") or {}).get("gpu_class", "")),
        "variant": work.variant.id,
        "variant_address": work.variant.address,
        "evaluation_address": work.address,
        "backend": work.backend,
        "dtype": work.dtype,
        "seed": work.seed,
        "batch_size": work.batch_size,
        "batch_share": attempt.batch_share,
        "shard": str(work.shard),
        "python": sys.version.split()[0],
        "environment": os.environ.get(NAME_VARIABLE, ""),
        "package": os.environ.get(PACKAGE_VARIABLE, ""),
        CHECKPOINT_FACTS: json.dumps(marked_facts(Path(work.checkpoint_path)), sort_keys=True),
        **{f"version_{name}": version for name, version in work.versions},
        **backend_description,
    }
