"""Log-probabilities of the most probable next tokens: one window packed to bytes, and all windows as HDF5 arrays.

A segment holds packed windows where other responses have their text, so that every function of the store handles them.
Merged results hold arrays that plain h5py reads.
"""

from __future__ import annotations

import struct
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hpcq.core.errors import SegmentCorruptError
from hpcq.core.frozen import dataclass
from hpcq.store.records import ResponseKind
from hpcq.store.response_columns import Columns, read_columns, with_texts, write_columns

_HEADER = struct.Struct("<II")
_ARRAYS = {"tokens": "<i4", "next_logprobs": "<f4", "top_ids": "<i4", "top_logprobs": "<f4"}


@dataclass(frozen=True, kw_only=True, eq=False)
class TopLogprobs:
    """One window. Position i predicts token i + 1 from the tokens before it.

    Attributes:
        tokens: Token ids that the model read, shape (tokens,).
        next_logprobs: Log-probability of the token that follows, in nats, shape (tokens - 1,).
        top_ids: The most probable tokens of each position, by falling log-probability, shape (tokens - 1, top).
        top_logprobs: Their log-probabilities, in nats, shape (tokens - 1, top).
    """

    tokens: NDArray[np.int32]
    next_logprobs: NDArray[np.float32]
    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]

    @property
    def loglikelihood(self) -> float:
        """Log-likelihood of all tokens but the first, in nats."""
        return float(self.next_logprobs.sum(dtype=np.float64))

    def sorted(self) -> TopLogprobs:
        """Return the window with the most probable tokens in order; tokens of equal probability by their id."""
        order = np.lexsort((self.top_ids, -self.top_logprobs), axis=1)
        return TopLogprobs(
            tokens=self.tokens,
            next_logprobs=self.next_logprobs,
            top_ids=np.take_along_axis(self.top_ids, order, axis=1),
            top_logprobs=np.take_along_axis(self.top_logprobs, order, axis=1),
        )

    def packed(self) -> bytes:
        """Return all arrays as bytes."""
        arrays = (getattr(self, name).astype(dtype).tobytes() for name, dtype in _ARRAYS.items())
        return _HEADER.pack(*self.top_ids.shape) + b"".join(arrays)


def unpack(content: bytes) -> TopLogprobs:
    """Return the window that `TopLogprobs.packed` packed.

    Raises:
        SegmentCorruptError: The bytes are not those of a window.
    """
    positions, top = _HEADER.unpack_from(content) if len(content) >= _HEADER.size else (0, 0)
    shapes = {
        "tokens": (positions + 1,),
        "next_logprobs": (positions,),
        "top_ids": (positions, top),
        "top_logprobs": (positions, top),
    }
    found: dict[str, NDArray[Any]] = {}
    at = _HEADER.size
    for name, dtype in _ARRAYS.items():
        end = at + int(np.prod(shapes[name])) * np.dtype(dtype).itemsize
        if end > len(content):
            break
        found[name] = np.frombuffer(content[at:end], dtype=dtype).reshape(shapes[name])
        at = end
    if len(found) < len(_ARRAYS) or at != len(content):
        raise SegmentCorruptError(f"{len(content)} bytes are not a window of {positions} positions and {top} tokens")
    return TopLogprobs(**found)


@dataclass(frozen=True, kw_only=True, eq=False)
class PanelTable:
    """All stored windows of a variant, sorted by window and repeat.

    Attributes:
        window: Index of each window, shape (rows,).
        repeat: Index of the repetition, shape (rows,).
        digest: Digest of each request: equal digests are equal texts. Shape (rows,).
        tokens: Shape (rows, tokens).
        next_logprobs: Shape (rows, tokens - 1).
        top_ids: Shape (rows, tokens - 1, top).
        top_logprobs: Shape (rows, tokens - 1, top).
    """

    window: NDArray[np.int64]
    repeat: NDArray[np.int32]
    digest: NDArray[np.bytes_]
    tokens: NDArray[np.int32]
    next_logprobs: NDArray[np.float32]
    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]

    def part(self, rows: NDArray[Any]) -> PanelTable:
        """Return some rows."""
        return PanelTable(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})


def is_panel(columns: Columns) -> bool:
    """Return whether the rows are windows of a fidelity panel."""
    return len(columns) > 0 and bool(np.all(columns.kind == ResponseKind.TOP_LOGPROBS))


def write_panel(group: h5py.Group, columns: Columns, filters: dict[str, Any]) -> None:
    """Write the windows as arrays in `group`, next to the columns of their keys.

    Raises:
        SegmentCorruptError: A row is not a window, or the windows have different shapes.
    """
    windows = [unpack(text) for text in columns.texts()]
    if len({(len(one.tokens), *one.top_ids.shape) for one in windows}) > 1:
        raise SegmentCorruptError(f"{group.name}: the windows of the fidelity panel have different shapes")
    write_columns(group, with_texts(columns, [b""] * len(columns)), filters)
    for name in _ARRAYS:
        data = np.stack([getattr(one, name) for one in windows])
        # One chunk per window: a reader of one window decompresses no other.
        group.create_dataset(name, data=data, chunks=(1, *data.shape[1:]), track_times=False, **filters)


def read_task_columns(group: h5py.Group) -> Columns:
    """Return the rows of one task of merged results, packed again if they are windows.

    Raises:
        SegmentCorruptError: A column is missing or invalid.
    """
    columns = read_columns(group)
    if not is_panel(columns):
        return columns
    arrays = {name: group[name][...] for name in _ARRAYS}
    rows = range(len(columns))
    return with_texts(columns, [TopLogprobs(**{name: arrays[name][row] for name in _ARRAYS}).packed() for row in rows])


def read_panel(group: h5py.Group) -> PanelTable:
    """Return the windows in a group that `write_panel` wrote."""
    return PanelTable(
        window=group["doc_id"][...],
        repeat=group["repeat"][...],
        digest=group["digest"][...],
        **{name: group[name][...] for name in _ARRAYS},
    )
