"""Settings of a manifest that differ from the lock file of its run, by key."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any

from hpcq.core.files import read_regular
from hpcq.core.paths import RunLayout

_WITHOUT_EFFECT = (
    "cluster.",
    "evaluate.batch_size",
    "evaluate.device",
    "evaluate.engine",
    "evaluate.flush_interval_s",
    "evaluate.offload",
    "evaluate.shards",
    "evaluate.synthetic.",
    "locked.hpcq",
    "paths.",
    "plan.",
    "quantize.device",
    "report.",
    "retries.",
    "run.",
)
"""Beginnings of keys that change no content address."""

_OF_GROWTH = re.compile(r"schemes\.use|models\.\d+\.(schemes|checkpoints)|tasks\.(use|suites)")
"""Keys that only add or remove variants and tasks."""


def changed_settings(layout: RunLayout, lock_text: str) -> dict[str, tuple[str, str]]:
    """Return the values before and after, by key of the lock file, of the settings that can change a result.

    Models, custom schemes and repositories that only one of the two has are left out: they change no other result. So
    are the lists that name models, schemes and tasks, unless nothing else has changed.

    Args:
        layout: Paths of the run.
        lock_text: Content of its next lock file.
    """
    after = tomllib.loads(lock_text)
    try:
        before = tomllib.loads(read_regular(layout.manifest_lock).decode())
    except (OSError, ValueError):
        before = {}
    _align_rows(before, after, "models", "id")
    _align_rows(before.get("schemes", {}), after["schemes"], "define", "name")
    _align_rows(before.get("locked", {}), after["locked"], "repositories", "id")
    old, new = _flatten(before), _flatten(after)
    changes = {
        key: (old.get(key, "unset"), new.get(key, "unset"))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(_WITHOUT_EFFECT)
    }
    return {key: values for key, values in changes.items() if not _OF_GROWTH.fullmatch(key)} or changes


def _align_rows(before: dict[str, Any], after: dict[str, Any], key: str, identity: str) -> None:
    """Give rows with the same identity the index that they have in `after`; empty all rows that only one has."""
    rows = {row.get(identity): row for row in before.get(key, ())}
    wanted = after.get(key, ())
    names = {row.get(identity) for row in wanted}
    before[key] = [rows.get(row.get(identity), {}) for row in wanted]
    after[key] = [row if row.get(identity) in rows.keys() & names else {} for row in wanted]


def _flatten(document: object, prefix: str = "") -> dict[str, str]:
    """Return the leaves of a TOML document by dotted key."""
    if isinstance(document, Mapping):
        items = [(str(key), value) for key, value in document.items()]
    elif isinstance(document, list) and document and isinstance(document[0], dict):
        items = [(str(at), value) for at, value in enumerate(document)]
    else:
        return {prefix: repr(document)}
    leaves: dict[str, str] = {}
    for key, value in items:
        leaves.update(_flatten(value, f"{prefix}.{key}" if prefix else key))
    return leaves
