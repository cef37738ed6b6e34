"""What was answered already when an evaluation was first cut into so many shards: decided once, kept for ever.

Knows requests' keys, and one small file beside the units' segments. Must not know batches or back ends.

Shards of one evaluation begin at different times, days apart in a long queue, and again after every interruption. Each
must cut the same list, or a request would be nobody's; what is known changes all the time. So the first one to begin
writes down what is known at that moment, and the others go by that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np

from hpcq.core.files import committed_folder, storage_faults
from hpcq.core.work import DIGEST_CHARACTERS, EvaluateWork
from hpcq.store import RequestKey

_FILE = "answered.json"


def answered_at_first(
    work: EvaluateWork, requests: Iterable[RequestKey], known: Collection[RequestKey]
) -> frozenset[RequestKey]:
    """Those of `requests`, the full list, that were answered when the first of `work`'s shards began.

    If none has begun yet that is now, and `known` is written down. A folder that is renamed into place takes no other's
    place, so of several that begin at once one is the first.

    Raises:
        StorageError: the file system refused.
    """
    if work.shard.count == 1:
        return frozenset()
    keys = sorted(requests)
    asked = _digest(keys)
    folder = _folder(work)
    if not folder.is_dir():
        with committed_folder(folder) as temporary:
            (temporary / _FILE).write_text(_text(keys, asked, known), encoding="utf-8")
    return frozenset(_read(folder / _FILE, keys, asked))


def _folder(work: EvaluateWork) -> Path:
    segments = Path(work.segments_path).parent
    return segments / f"answered.{work.variant.id}.of{work.shard.count}.{work.address[:DIGEST_CHARACTERS]}"


def _digest(keys: Iterable[RequestKey]) -> str:
    digest = hashlib.sha256()
    for key in keys:
        digest.update(f"{tuple(key)}\n".encode())
    return digest.hexdigest()


def _text(keys: Sequence[RequestKey], asked: str, known: Collection[RequestKey]) -> str:
    """A bit a request: a million of them are 250 kB."""
    bits = np.packbits(np.fromiter((key in known for key in keys), dtype=bool, count=len(keys)))
    return json.dumps({"schema": 1, "requests": asked, "answered": bits.tobytes().hex()}) + "\n"


def _read(path: Path, keys: Sequence[RequestKey], asked: str) -> list[RequestKey]:
    """None of `keys` where the file is damaged or of other requests: that costs every shard the balance, no more."""
    try:
        with storage_faults(path):
            content = json.loads(path.read_text(encoding="utf-8"))
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(content["answered"]), dtype=np.uint8))
        is_ours = content["requests"] == asked
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return []
    return [key for key, bit in zip(keys, bits, strict=False) if bit and is_ours]
