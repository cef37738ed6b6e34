"""Rows of responses as columns of numpy arrays and HDF5 datasets."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hpcq.core.errors import SegmentCorruptError
from hpcq.core.frozen import dataclass
from hpcq.store.records import RequestKey, Response, ResponseKind

Row = tuple[RequestKey, Response]

_ROW_TYPES = {
    "doc_id": "<i8",
    "request_index": "<i4",
    "repeat": "<i4",
    "digest": "S32",
    "kind": "u1",
    "loglikelihood": "<f8",
    "is_greedy": "i1",
    "cut_tokens": "<i4",
}
# HDF5 does not filter strings of variable length, so all texts are concatenated into one array of bytes.
_TYPES = {**_ROW_TYPES, "text": "u1", "text_offsets": "<i8"}
_NO_FLAG = _UNKNOWN = -1
_ADDED_LATER = {"cut_tokens": _UNKNOWN}
"""Columns that files of earlier versions do not have, with the value of all their rows."""
# A tokenizer can decode to half of a surrogate pair; this must not crash a run.
_ENCODING = ("utf-8", "surrogatepass")


@dataclass(frozen=True, kw_only=True, eq=False)
class Columns:
    """Rows without their task, as arrays of shape (rows,) except for the texts.

    Attributes:
        doc_id: Index of the document in its data set.
        request_index: Index of the request among those of its document.
        repeat: Index of the repetition of the request.
        digest: `hpcq.store.records.digest_of_arguments`.
        kind: `hpcq.store.records.ResponseKind`.
        loglikelihood: NaN for generated text.
        is_greedy: 1 or 0; -1 if the kind has no such flag.
        cut_tokens: Tokens that were removed from the left of the prompt; -1 if that was not recorded.
        text: All texts concatenated, in UTF-8; of a fidelity panel, its packed log-probabilities.
        text_offsets: Shape (rows + 1,); text `i` is `text[text_offsets[i] : text_offsets[i + 1]]`.
    """

    doc_id: NDArray[np.int64]
    request_index: NDArray[np.int32]
    repeat: NDArray[np.int32]
    digest: NDArray[np.bytes_]
    kind: NDArray[np.uint8]
    loglikelihood: NDArray[np.float64]
    is_greedy: NDArray[np.int8]
    cut_tokens: NDArray[np.int32]
    text: NDArray[np.uint8]
    text_offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.doc_id)

    def responses(self) -> list[Response]:
        """Return the responses in the order of the rows."""
        generated = int(ResponseKind.GENERATE_UNTIL)
        rolling = int(ResponseKind.LOGLIKELIHOOD_ROLLING)
        packed = int(ResponseKind.TOP_LOGPROBS)
        cut = [None if count == _UNKNOWN else count for count in self.cut_tokens.tolist()]
        columns = (self.kind.tolist(), self.loglikelihood.tolist(), self.is_greedy.tolist(), self.texts(), cut)
        return [
            Response(None, None, text.decode(*_ENCODING), cut_tokens)
            if kind == generated
            else Response(loglikelihood, None, None, cut_tokens, text)
            if kind == packed
            else Response(loglikelihood, None if kind == rolling else bool(flag), None, cut_tokens)
            for kind, loglikelihood, flag, text, cut_tokens in zip(*columns, strict=True)
        ]

    def texts(self) -> list[bytes]:
        """Return the texts as bytes; empty for rows without text."""
        blob = self.text.tobytes()
        return [blob[start:end] for start, end in itertools.pairwise(self.text_offsets.tolist())]

    def take(self, order: NDArray[np.int64]) -> Columns:
        """Return the rows with the indices `order`, in that order."""
        texts = self.texts()
        return Columns(
            **{name: getattr(self, name)[order] for name in _ROW_TYPES},
            **_texts([texts[row] for row in order.tolist()]),
        )

    def slice_rows(self, start: int, end: int) -> Columns:
        """Return the rows from `start` to `end` (exclusive) without copying."""
        offsets = self.text_offsets[start : end + 1]
        return Columns(
            **{name: getattr(self, name)[start:end] for name in _ROW_TYPES},
            text=self.text[offsets[0] : offsets[-1]],
            text_offsets=offsets - offsets[0],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Rows of one task, task version and content address."""

    task: str
    task_version: str
    address: str
    columns: Columns

    def __len__(self) -> int:
        return len(self.columns)

    def equals(self, other: Table) -> bool:
        """Return whether `other` has the same rows, compared bit by bit."""
        return (self.task, self.task_version, self.address) == (other.task, other.task_version, other.address) and all(
            getattr(self.columns, name).tobytes() == getattr(other.columns, name).tobytes() for name in _TYPES
        )

    def keys(self) -> list[RequestKey]:
        """Return the keys in the order of the rows."""
        columns = self.columns
        parts = (columns.doc_id, columns.request_index, columns.repeat, columns.digest.astype("U32"))
        task, version = self.task, self.task_version
        return [RequestKey(task, version, *row) for row in zip(*(part.tolist() for part in parts), strict=True)]

    def rows(self) -> Iterator[Row]:
        """Iterate over key and response of every row."""
        return zip(self.keys(), self.columns.responses(), strict=True)


def columns_from_rows(rows: Sequence[Row]) -> Columns:
    """Return `rows` as columns, in the same order."""
    cells = {
        "doc_id": [key.doc_id for key, _ in rows],
        "request_index": [key.request_index for key, _ in rows],
        "repeat": [key.repeat for key, _ in rows],
        "digest": [key.digest.encode("ascii") for key, _ in rows],
        "kind": [response.kind for _, response in rows],
        "loglikelihood": [np.nan if item.loglikelihood is None else item.loglikelihood for _, item in rows],
        "is_greedy": [_NO_FLAG if item.is_greedy is None else item.is_greedy for _, item in rows],
        "cut_tokens": [_UNKNOWN if item.cut_tokens is None else item.cut_tokens for _, item in rows],
    }
    return Columns(
        **{name: np.array(cells[name], dtype=dtype) for name, dtype in _ROW_TYPES.items()},
        **_texts([_stored_text(item) for _, item in rows]),
    )


def _stored_text(response: Response) -> bytes:
    if response.logprobs is not None:
        return response.logprobs
    return b"" if response.text is None else response.text.encode(*_ENCODING)


def concatenate(parts: Sequence[Columns]) -> Columns:
    """Return the rows of all `parts`, in order."""
    lengths = np.concatenate([np.diff(part.text_offsets) for part in parts])
    return Columns(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in (*_ROW_TYPES, "text")},
        text_offsets=_offsets(lengths),
    )


def with_texts(columns: Columns, texts: Iterable[bytes]) -> Columns:
    """Return the rows with other texts, one per row."""
    return dataclasses.replace(columns, **_texts(texts))


def write_columns(group: h5py.Group, columns: Columns, filters: Mapping[str, Any] | None = None) -> None:
    """Write each column as a dataset of `group`, with the HDF5 `filters`; texts are always compressed."""
    for name in _TYPES:
        column = getattr(columns, name)
        chosen = {**(filters or {}), **({"compression": "gzip"} if name == "text" else {})}
        # Filters need chunks, which empty datasets do not have. Time stamps would make equal files differ.
        group.create_dataset(name, data=column, track_times=False, **(chosen if len(column) else {}))


def read_columns(group: h5py.Group) -> Columns:
    """Read the columns in `group`.

    Raises:
        SegmentCorruptError: A column is missing, has another type or length, or the offsets of the texts are invalid.
    """
    columns: dict[str, NDArray[Any]] = {}
    for name, dtype in _TYPES.items():
        dataset = group.get(name)
        if dataset is None and name in _ADDED_LATER:
            columns[name] = np.full(len(columns["doc_id"]), _ADDED_LATER[name], dtype)
            continue
        if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1 or dataset.dtype != np.dtype(dtype):
            raise SegmentCorruptError(f"{group.name}: the column '{name}' ({dtype}) is missing or has another type")
        columns[name] = dataset[...]
    lengths = [len(columns[name]) for name in _ROW_TYPES]
    offsets = columns["text_offsets"]
    if {*lengths, len(offsets) - 1} != {lengths[0]}:
        raise SegmentCorruptError(f"{group.name}: the columns have unequal lengths: {lengths}, offsets {len(offsets)}")
    if offsets[0] != 0 or offsets[-1] != len(columns["text"]) or np.any(np.diff(offsets) < 0):
        raise SegmentCorruptError(
            f"{group.name}: the offsets of the texts do not match the {len(columns['text'])} bytes of text"
        )
    if np.any(columns["kind"] > max(ResponseKind)):
        raise SegmentCorruptError(
            f"{group.name}: {columns['kind'].max()} is not a kind of response that this version of hpcq reads"
        )
    return Columns(**columns)


def _texts(texts: Iterable[bytes]) -> dict[str, NDArray[Any]]:
    texts = list(texts)
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    return {"text": np.frombuffer(b"".join(texts), dtype=np.uint8), "text_offsets": _offsets(lengths)}


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])
