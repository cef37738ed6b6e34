"""hpcq: which quantization of which model can be trusted for which tasks, and what it costs, on a Slurm cluster.

The public Python API is `hpcq.api`; its names are available here and imported when they are first used.

Example:
    >>> import hpcq
    >>> [run.name for run in hpcq.runs()]
    ['demo']
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcq.api import (
        Records,
        ResponseRecord,
        Run,
        build_report,
        cut_prompts,
        diagnose,
        export,
        find,
        init_manifest,
        init_profile,
        latest,
        load,
        make_report,
        overviews,
        runs,
    )

__version__ = "0.1.0"

__all__ = [
    "Records",
    "ResponseRecord",
    "Run",
    "__version__",
    "build_report",
    "cut_prompts",
    "diagnose",
    "export",
    "find",
    "init_manifest",
    "init_profile",
    "latest",
    "load",
    "make_report",
    "overviews",
    "runs",
]


def __getattr__(name: str) -> Any:
    """Import the API on first use: a job imports this package too, and must start fast."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hpcq import api

    return getattr(api, name)
