"""The manifest: from a user's TOML to what it comes to, and back to a lock. The names that other rooms use.

Knows the catalog, the cluster's profile and the disk, and only reads; knows nothing of plans, jobs or results.
"""

from hpcq.manifest.loader import load
from hpcq.manifest.lockfile import lock_text
from hpcq.manifest.profiles import Profile
from hpcq.manifest.resolved import EvaluateSettings, QuantizeSettings, ReportSettings, Resolved
from hpcq.manifest.resolver import layout_of, resolve
from hpcq.manifest.schema import Manifest

__all__ = [
    "EvaluateSettings",
    "Manifest",
    "Profile",
    "QuantizeSettings",
    "ReportSettings",
    "Resolved",
    "layout_of",
    "load",
    "lock_text",
    "resolve",
]
