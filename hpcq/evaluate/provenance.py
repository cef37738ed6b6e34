"""Where responses come from: the tools' versions, verified, and what a segment tells of the process that made it.

Knows the work's records and this machine. Must not import a tool whose version it asks for.
"""

from __future__ import annotations

import importlib.metadata
import sys

from hpcq import __version__
from hpcq.core.attempts import Attempt
from hpcq.core.errors import SetupError
from hpcq.core.work import EvaluateWork, Versions


def verify_versions(versions: Versions) -> None:
    """Make sure that this interpreter has exactly the tools that the work's address names.

    A build's local suffix does not count: torch 2.13.0+cpu is 2.13.0.

    Raises:
        SetupError: one is missing or of another version.
    """
    for name, wanted in versions:
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "missing"
        if found.partition("+")[0] != wanted.partition("+")[0]:
            raise SetupError(
                f"{sys.executable}: {name} is {found} where the plan says {wanted}: make the environment again from its"
                " lock (`make environments`), or submit the manifest again to plan with what is there."
            )


Provenance = dict[str, str | int | float]


def provenance_of(work: EvaluateWork, attempt: Attempt, described: Provenance) -> Provenance:
    """What every segment of this attempt tells of itself."""
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
        "shard": f"{work.shard.index}of{work.shard.count}",
        "python": sys.version.split()[0],
        **{f"version_{name}": version for name, version in work.versions},
        **described,
    }
