"""The finished blocks of a checkpoint in the making: each committed as it is done, and taken up again after a kill.

Knows bytes, digests and files; must not know any tool, nor how a tool divides its work. The metadata of a block's file
has a digest of the file, and that of the block which was done before it. So blocks form a chain that begins with what
they are made of: a file that was cut or altered, that belongs to another checkpoint, or whose predecessor was made
anew with other bits is not used, and no mixture of two makings can come about.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcq.core.files import committed_file, storage_faults
from hpcq.quantize.safetensors_io import METADATA, RawTensor, encoded, header_of, read_tensors, write_tensors

BLOCKS_SUFFIX = ".blocks"
ASIDE_SUFFIX = ".set-aside"
SCHEMA = "1"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Block:
    """What a tool changed in one step of its work, and what it noted there, as plain JSON types."""

    tensors: Mapping[str, RawTensor]
    facts: Mapping[str, Any] = field(default_factory=dict)


class Blocks:
    """The blocks of one checkpoint, in the order in which they are made.

    Ask with `take` for one after the other; the first that is not there, and all that follow, have to be made and
    committed. `changed` is called after each. One process at a time may work on them (see claims.py).
    """

    def __init__(self, folder: Path, origin: Mapping[str, Any], changed: Callable[[Blocks], None]) -> None:
        self.folder = folder
        self.restored = self.committed = 0
        self._origin = origin
        self._changed = changed
        self._last = _digest(encoded(origin))
        self._is_whole = True

    def begin(self, **surroundings: str) -> None:
        """Say, before the first block, what else than `origin` decides on the bits."""
        self._last = _digest(encoded({**self._origin, **surroundings}))

    def take(self, name: str) -> Block | None:
        """The block that was committed under this name, if all before it were taken, too; None: it has to be made.

        Raises:
            StorageError: the file is there, and cannot be read.
        """
        path = self._path(name)
        if not self._is_whole or not path.exists():
            self._is_whole = False
            return None
        try:
            block, digest = _read(path, name, self._last)
        except _Unusable as reason:
            _log.warning("%s: set aside: %s; the block is made again.", path, reason)
            with storage_faults(path):
                path.replace(path.with_name(path.name + ASIDE_SUFFIX))
            self._is_whole = False
            return None
        self._last = digest
        self.restored += 1
        self._changed(self)
        return block

    def commit(self, name: str, block: Block) -> None:
        """Make a finished block durable.

        Raises:
            StorageError: no room, no permission, read-only or stale.
        """
        metadata = {"schema": SCHEMA, "name": name, "after": self._last, "facts": encoded(block.facts).decode()}
        data = (tensor.data for tensor in block.tensors.values())
        digest = _digest(encoded(header_of(block.tensors, metadata)), *data)
        with committed_file(self._path(name)) as temporary:
            write_tensors(temporary, block.tensors, {**metadata, "digest": digest})
        self._last = digest
        self.committed += 1
        self._changed(self)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


class _Unusable(Exception):
    """Why a block's file cannot be used."""


def _read(path: Path, name: str, last: str) -> tuple[Block, str]:
    """The block in a file, and its digest."""
    try:
        with storage_faults(path):
            header, tensors, data = read_tensors(path)
        metadata = header[METADATA]
        digest = metadata.pop("digest")
        facts = json.loads(metadata["facts"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Unusable("it is cut short or altered") from error
    if digest != _digest(encoded(header), data):
        raise _Unusable("it is cut short or altered")
    if (metadata.get("schema"), metadata.get("name"), metadata.get("after")) != (SCHEMA, name, last):
        raise _Unusable("it belongs to another checkpoint, or to another making of this one")
    return Block(tensors=tensors, facts=facts), digest


def _digest(*parts: bytes | memoryview) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()
