"""Content addresses of work records, and names that are safe in paths.

A content address is the SHA-256 of everything that can change a result and of nothing that cannot. The declaration of a
field decides which it is: `unaddressed()` marks a field that cannot change a result (a path, a label, a batch size, a
shard).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from typing import Any

ADDRESS_VERSION = 1
DIGEST_CHARACTERS = 12
"""Leading hexadecimal digits of an address that go into names."""
VARIANT_SEPARATOR = "--"
"""Between model, scheme and digest in the id of a variant."""
SLUG_CHARACTERS = 80
"""Maximum length of a slug: a unit's id holds two of them and must fit into the 255 bytes of a file name."""


def unaddressed(default: Any = dataclasses.MISSING) -> Any:
    """Declare a dataclass field that cannot change a result and is therefore not part of the content address."""
    return dataclasses.field(default=default, metadata={"addressed": False})


def canonical(value: object) -> Any:
    """Return `value` as plain JSON types, without unaddressed fields. The JSON encoder sorts the keys.

    A field that holds its default is omitted too: an optional field that is added later keeps existing addresses.

    Raises:
        TypeError: a value has no canonical form.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            item.name: canonical(getattr(value, item.name))
            for item in dataclasses.fields(value)
            if item.metadata.get("addressed", True) and getattr(value, item.name) != item.default
        }
    if isinstance(value, dict):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{type(value).__name__} has no canonical form for a content address")


def address_of(*parts: object) -> str:
    """Return the content address of `parts`: 64 hexadecimal digits."""
    text = json.dumps([ADDRESS_VERSION, *map(canonical, parts)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def slug(text: str) -> str:
    """Return `text` as a name for folders, jobs and HDF5 groups: lower case, digits, '.', '-' and '_'."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower())[:SLUG_CHARACTERS].strip("-.") or "unnamed"
