"""Provenance of responses: verified versions of the tools, and the attributes of a segment."""

from __future__ import annotations

import importlib.metadata
import os
import sys

from hpcq import __version__
from hpcq.core.attempts import Attempt
from hpcq.core.environments import NAME_VARIABLE
from hpcq.core.errors import SetupError
from hpcq.core.work import EvaluateWork, Versions

Provenance = dict[str, str | int | float]


def verify_versions(versions: Versions) -> None:
    """Check that this interpreter has exactly the tools that the work's address names.

    The tools are not imported. The local suffix of a build is ignored: torch 2.13.0+cpu counts as 2.13.0.

    Raises:
        SetupError: a tool is missing or has another version.
    """
    for name, planned in versions:
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "missing"
        if found.partition("+")[0] != planned.partition("+")[0]:
            raise SetupError(
                f"{sys.executable}: {name} is {found}, but the plan requires {planned}. Rebuild the environment from"
                " its lock (`make environments`), or submit the manifest again to plan with the installed version."
            )


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
