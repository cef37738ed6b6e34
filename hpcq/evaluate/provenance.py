"""Provenance of responses: the attributes of a segment."""

from __future__ import annotations

import os
import sys

from hpcq import __version__
from hpcq.core.attempts import Attempt
from hpcq.core.environments import NAME_VARIABLE
from hpcq.core.work import EvaluateWork

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
        **{f"version_{name}": version for name, version in work.versions},
        **backend_description,
    }
