"""Files of the finished blocks of an unfinished checkpoint: written one by one, read again after a kill.

The metadata of a block's file has a digest of the file and the digest of the preceding block. So the blocks form a
chain that begins with their origin. A block is not used if it is truncated or modified, if it belongs to another
checkpoint, or if its predecessor was recomputed with other bits. So a checkpoint never mixes blocks of two runs.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from hpcq.core.files import committed_file, storage_errors
from hpcq.core.frozen import dataclass
from hpcq.quantize.safetensors_io import RawTensor, read_tensors, write_tensors

BLOCKS_SUFFIX = ".blocks"
ASIDE_SUFFIX = ".set-aside"
SCHEMA = 2
_METADATA_KEY = "hpcq"
"""The only entry in a file's metadata, since safetensors writes several entries in random order."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Block:
    """Result of one step of a tool.

    Attributes:
        tensors: Those that the step changed.
        facts: Other results of the step, as plain JSON types.
    """

    tensors: Mapping[str, RawTensor]
    facts: Mapping[str, Any] = field(default_factory=dict)


class BlockStore:
    """The blocks of one checkpoint, in the order in which they are computed.

    Call `restore` for one after the other. After the first that returns None, compute and commit that block and all
    that follow. One process at a time may use a store (see checkpoint_lock.py).

    Attributes:
        folder: Where the blocks are stored, one file per block.
        restored: Number of blocks restored so far.
        committed: Number of blocks committed so far.
    """

    def __init__(self, folder: Path, origin: Mapping[str, Any], on_change: Callable[[BlockStore], None]) -> None:
        self.folder = folder
        self.restored = self.committed = 0
        self._origin = origin
        self._on_change = on_change
        self._last_digest = _digest(_canonical_json(origin))
        self._is_unbroken = True

    def set_environment(self, **environment: str) -> None:
        """Add to the origin what else determines the blocks' bits, such as the device. Call before the first block."""
        self._last_digest = _digest(_canonical_json({**self._origin, **environment}))

    def restore(self, name: str) -> Block | None:
        """Return the block committed under `name` if all before it were restored; None if it must be computed.

        Raises:
            StorageError: The file exists and cannot be read.
        """
        path = self._path(name)
        if not self._is_unbroken or not path.exists():
            self._is_unbroken = False
            return None
        try:
            block, digest = _read(path, name, self._last_digest)
        except _UnusableBlockError as reason:
            _log.warning("%s: set aside: %s. The block is recomputed.", path, reason)
            with storage_errors(path):
                path.replace(path.with_name(path.name + ASIDE_SUFFIX))
            self._is_unbroken = False
            return None
        self._last_digest = digest
        self.restored += 1
        self._on_change(self)
        return block

    def commit(self, name: str, block: Block) -> None:
        """Make a finished block durable.

        Raises:
            StorageError: The disk is full, or the folder is not writable, read-only or stale.
        """
        metadata = {"schema": SCHEMA, "name": name, "after": self._last_digest, "facts": dict(block.facts)}
        digest = _digest_of_content(metadata, block.tensors)
        entry = _canonical_json({**metadata, "digest": digest}).decode()
        with committed_file(self._path(name)) as temporary:
            write_tensors(temporary, block.tensors, {_METADATA_KEY: entry})
        self._last_digest = digest
        self.committed += 1
        self._on_change(self)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


class _UnusableBlockError(Exception):
    """Why a block's file cannot be used."""


def _read(path: Path, name: str, last_digest: str) -> tuple[Block, str]:
    """Return the block in a file and its digest.

    Raises:
        _UnusableBlockError: The file is damaged, or does not follow the block with `last_digest`.
    """
    try:
        with storage_errors(path):
            entries, tensors = read_tensors(path)
        metadata = json.loads(entries[_METADATA_KEY])
        digest = metadata.pop("digest")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _UnusableBlockError("it is truncated or modified") from error
    if digest != _digest_of_content(metadata, tensors):
        raise _UnusableBlockError("it is truncated or modified")
    if (metadata.get("schema"), metadata.get("name"), metadata.get("after")) != (SCHEMA, name, last_digest):
        raise _UnusableBlockError("it belongs to another checkpoint, or to another run of this one")
    return Block(tensors=tensors, facts=metadata["facts"]), digest


def _digest_of_content(metadata: Mapping[str, Any], tensors: Mapping[str, RawTensor]) -> str:
    """Return a digest that does not depend on the order of the tensors, which safetensors changes."""
    names = sorted(tensors)
    layout = [[name, tensors[name].dtype, list(tensors[name].shape)] for name in names]
    return _digest(_canonical_json([metadata, layout]), *(tensors[name].data for name in names))


def _canonical_json(value: object) -> bytes:
    """Return `value` as canonical JSON: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _digest(*parts: bytes | memoryview) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()
