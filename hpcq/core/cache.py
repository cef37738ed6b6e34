"""The cache that outlives a checkout: environments, staged models, benchmark items and calibration text.

`HPCQ_CACHE`, else `$XDG_CACHE_HOME/hpcq`, else `~/.cache/hpcq`. Everything in it can be made again.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The cache's root, absolute; it need not exist yet."""
    named = os.environ.get("HPCQ_CACHE")
    if named:
        return Path(named).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).expanduser().resolve() / "hpcq"
