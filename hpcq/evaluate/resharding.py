"""Division of the remaining requests when the number of shards changes: one snapshot that all shards use.

The shards of one evaluation start at different times, days apart in a long queue, and again after every interruption.
All of them must divide the same list, or some request would belong to no shard; but the set of answered requests
changes all the time. Therefore the first shard to start writes a snapshot, a small file next to the units' segments,
and all shards use it. It is never changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np

from hpcq.core.addressing import DIGEST_CHARACTERS
from hpcq.core.files import committed_folder, read_regular, storage_errors
from hpcq.core.work_records import EvaluateWork
from hpcq.store import RequestKey

_FILE_NAME = "answered.json"


def answered_snapshot(
    work: EvaluateWork, requests: Iterable[RequestKey], answered: Collection[RequestKey]
) -> frozenset[RequestKey]:
    """Return the requests that were answered when the first of `work`'s shards started.

    If none has started, write the snapshot from `answered`. Renaming a folder into place does not replace another, so
    of several shards that start at once exactly one is the first.

    Args:
        work: The evaluation, with its shard.
        requests: The full request list of the evaluation.
        answered: Requests that are answered now.

    Raises:
        StorageError: the file system reported an error.
    """
    if work.shard.count == 1:
        return frozenset()
    keys = sorted(requests)
    request_digest = _digest(keys)
    folder = _snapshot_folder(work)
    if not folder.is_dir():
        with committed_folder(folder) as temporary:
            (temporary / _FILE_NAME).write_text(_snapshot_text(keys, request_digest, answered), encoding="utf-8")
    return frozenset(_read_snapshot(folder / _FILE_NAME, keys, request_digest))


def _snapshot_folder(work: EvaluateWork) -> Path:
    segments = Path(work.segments_path).parent
    return segments / f"answered.{work.variant.id}.of{work.shard.count}.{work.address[:DIGEST_CHARACTERS]}"


def _digest(keys: Iterable[RequestKey]) -> str:
    digest = hashlib.sha256()
    for key in keys:
        digest.update(f"{tuple(key)}\n".encode())
    return digest.hexdigest()


def _snapshot_text(keys: Sequence[RequestKey], request_digest: str, answered: Collection[RequestKey]) -> str:
    """Return the content of the file, with one bit per request: 250 kB per million requests."""
    bits = np.packbits(np.fromiter((key in answered for key in keys), dtype=bool, count=len(keys)))
    return json.dumps({"schema": 1, "requests": request_digest, "answered": bits.tobytes().hex()}) + "\n"


def _read_snapshot(path: Path, keys: Sequence[RequestKey], request_digest: str) -> list[RequestKey]:
    """Return the answered ones of `keys`; none if the file is damaged or belongs to other requests.

    A damaged file only costs the balance of the shards: every request still belongs to one.
    """
    try:
        with storage_errors(path):
            content = json.loads(read_regular(path))
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(content["answered"]), dtype=np.uint8))
        is_ours = content["requests"] == request_digest
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return []
    return [key for key, bit in zip(keys, bits, strict=False) if bit and is_ours]
