"""Manifests: parse, validate and resolve a user's TOML file, and write the lock file.

Reads the catalog, cluster profiles and the file system. Writes only digests to the cache.
"""

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
