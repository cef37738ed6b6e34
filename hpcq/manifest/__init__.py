"""Manifests: parse, validate and resolve a user's TOML file, and write the lock file.

Reads the catalog, cluster profiles and the file system. Writes only digests to the cache.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcq.manifest.checks import check_manifest
    from hpcq.manifest.context import Context
    from hpcq.manifest.loader import load
    from hpcq.manifest.lockfile import lock_text
    from hpcq.manifest.profiles import Profile
    from hpcq.manifest.resolved import EvaluateSettings, QuantizeSettings, ReportSettings, ResolvedManifest
    from hpcq.manifest.resolver import resolve, run_layout
    from hpcq.manifest.schema import Manifest

__all__ = [
    "Context",
    "EvaluateSettings",
    "Manifest",
    "Profile",
    "QuantizeSettings",
    "ReportSettings",
    "ResolvedManifest",
    "check_manifest",
    "load",
    "lock_text",
    "resolve",
    "run_layout",
]

_MODULES = ("schema", "profiles", "context", "resolved", "loader", "checks", "lockfile", "resolver")


def __getattr__(name: str) -> Any:
    """Import a name from its module on first use: commands that need few of them start fast."""
    if name in __all__:
        for module in _MODULES:
            found = vars(importlib.import_module(f"{__name__}.{module}"))
            if name in found:
                return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
