"""Writer of segments: buffers the responses of a worker and commits them at regular intervals.

A separate thread commits them, because a backend may spend minutes inside one call.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event, RLock
from types import TracebackType
from typing import Self

from hpcq.core.errors import StorageError
from hpcq.core.files import committed_file, is_transient, remove_stale_temporaries
from hpcq.store.checksummed import stored_digest
from hpcq.store.compaction import FAN_OUT, compact
from hpcq.store.records import DIGEST_CHARACTERS, RequestKey, Response
from hpcq.store.response_columns import Row
from hpcq.store.segments import TOKEN_CHARACTERS, Provenance, SegmentName, segment_bytes

FLUSH_INTERVAL_S = 30.0
RETRY_TIMEOUT_S = 600.0
MIN_RETRY_PAUSE_S, MAX_RETRY_PAUSE_S = 0.1, 30.0
"""Pauses between retries while the file system refuses to write; each pause is twice the previous one."""
MAX_BACKLOG_FACTOR = 4
"""Multiple of `max_rows` that may be pending while the file system refuses to write, before `add` blocks."""

_REQUEST_DIGEST = re.compile(rf"[0-9a-f]{{{DIGEST_CHARACTERS}}}")
_INT32_END, _INT64_END = 2**31, 2**63
_log = logging.getLogger(__name__)


class SegmentWriter:
    """Buffers responses and commits them to `folder` as segments. Committed rows survive any crash.

    A segment is committed when rows are added and either `flush_interval_s` have passed since the last commit or
    `max_rows` are pending, on `flush`, and at the end of the `with` block, also if it is left by an exception. Inside
    the block a separate thread commits at every interval, whether or not rows are added. Empty segments are never
    written.

    If the file system refuses to write (no space, no quota, a server that is away), the thread retries for
    `retry_timeout_s` inside the block. The worker continues until more than `MAX_BACKLOG_FACTOR` times `max_rows` are
    pending. Rows are kept until they are committed.

    The separate thread also compacts the folder (`hpcq.store.compaction`) at the start and after every `FAN_OUT`
    segments.

    Rows are added by one thread. `flush` may be called from any thread, and from a signal handler.

    Args:
        folder: Folder of the unit, created if necessary.
        attempt: Number of the attempt, part of the segments' names.
        addresses: Task → content address of its responses, for every task of the unit.
        provenance: What computes the responses, and with what; stored in every segment.
        counts: Returns counts over the attempt so far, which are added to the provenance at each commit. Called from
            any thread.
        flush_interval_s: Seconds between commits: the work that is lost if the process is killed.
        max_rows: Maximum rows per segment, unless one `add_all` brings more or the file system refuses to write.
        retry_timeout_s: Seconds for which an outage of the file system is tolerated.
    """

    def __init__(  # noqa: PLR0913 (half of them have defaults)
        self,
        folder: Path,
        *,
        attempt: int,
        addresses: Mapping[str, str],
        provenance: Provenance,
        counts: Callable[[], Mapping[str, int]] = dict,
        flush_interval_s: float = FLUSH_INTERVAL_S,
        max_rows: int = 4096,
        retry_timeout_s: float = RETRY_TIMEOUT_S,
    ) -> None:
        self._folder = folder
        self._attempt = attempt
        self._addresses = dict(addresses)
        self._versions: dict[str, str] = {}
        self._provenance = dict(provenance)
        self._counts = counts
        self._flush_interval_s = flush_interval_s
        self._max_rows = max_rows
        self._retry_timeout_s = retry_timeout_s
        self._sequence = 0
        # One thread appends rows; the thread that holds the lock removes them from the front. Both are atomic in the
        # interpreter. The lock is reentrant because a signal handler may flush on the thread that it interrupts.
        self._pending: list[Row] = []
        self._commit_lock = RLock()
        self._committed_at_s = time.monotonic()
        self._storage_error: StorageError | None = None
        self._failing_since_s = 0.0
        self._flush_thread: Future[None] | None = None
        self._wake_up = Event()
        self._is_closed = False

    def add(self, key: RequestKey, response: Response) -> None:
        """Add one response; it survives a crash once a segment with it is committed."""
        self.add_all([(key, response)])

    def add_all(self, rows: Iterable[Row]) -> None:
        """Add a batch of responses, which is committed in one segment.

        Raises:
            ValueError: A row cannot be stored in a segment; no row of the batch is added.
            StorageError: A commit that was due failed; inside a `with` block, only if retrying cannot help. The rows
                are kept.
        """
        batch = [(key, response) for key, response in rows if self._check(key, response)]
        self._pending.extend(batch)
        self._raise_flush_thread_error()
        if not self._is_due():
            return
        if self._flush_thread is None or self._is_permanent():
            self.flush()
        elif self._storage_error is not None:
            if len(self._pending) > MAX_BACKLOG_FACTOR * self._max_rows:
                self._flush_with_retries()
        elif len(self._pending) < self._max_rows and self._flush_interval_s > 0:
            self._wake_up.set()
        else:
            self._flush_or_defer()

    def flush(self) -> Path | None:
        """Commit pending rows, without retries, from any thread; return the new segment, or None if none were pending.

        Raises:
            StorageError: The file system refused to write; the rows are kept for the next attempt.
        """
        with self._commit_lock:
            rows = self._pending[:]
            if not rows:
                return None
            try:
                path = self._commit(rows)
            except StorageError as error:
                self._record_storage_error(error)
                raise
            del self._pending[: len(rows)]
            self._sequence += 1
            self._committed_at_s = time.monotonic()
            self._storage_error = None
            if self._sequence % FAN_OUT == 0:
                self._wake_up.set()
            return path

    def _flush_or_defer(self) -> None:
        """Flush; leave a transient error to the flush thread."""
        try:
            self.flush()
        except StorageError:
            if self._is_permanent():
                raise
            self._wake_up.set()

    def __enter__(self) -> Self:
        remove_stale_temporaries(self._folder)
        threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hpcq-checkpoint")
        self._flush_thread = threads.submit(self._flush_periodically)
        threads.shutdown(wait=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_closed = True
        self._wake_up.set()
        if kind is not None and issubclass(kind, (SystemExit, KeyboardInterrupt)):
            self.flush()
        else:
            self._flush_with_retries()
            if self._flush_thread is not None:
                wait([self._flush_thread])  # it may be compacting
        self._raise_flush_thread_error()

    def _flush_periodically(self) -> None:
        """Commit pending rows at every interval, and retry sooner after an error. Runs on the flush thread.

        An error is kept in `_storage_error`. If it is permanent, the next `add` or the end of the block raises it.
        """
        pause_s, compacted = MIN_RETRY_PAUSE_S, -FAN_OUT
        while not self._is_closed:
            if self._sequence - compacted >= FAN_OUT:
                compacted = self._sequence
                self._compact()
            is_failing = self._storage_error is not None
            self._wake_up.wait(pause_s if is_failing else self._flush_interval_s or MAX_RETRY_PAUSE_S)
            if self._is_closed:
                return
            pause_s = min(2 * pause_s, MAX_RETRY_PAUSE_S) if is_failing else MIN_RETRY_PAUSE_S
            with contextlib.suppress(StorageError):
                self.flush()
            self._wake_up.clear()

    def _compact(self) -> None:
        """Compact the folder. If the file system refuses, the files stay as they are."""
        try:
            compact(self._folder, should_stop=lambda: self._is_closed)
        except StorageError as error:
            _log.warning("Segments were not compacted: %s", error)

    def _flush_with_retries(self) -> None:
        """Flush, with retries after increasing pauses until the error is permanent.

        Raises:
            StorageError: The error is permanent.
        """
        pause_s = MIN_RETRY_PAUSE_S
        while True:
            try:
                self.flush()
            except StorageError:
                if self._is_permanent():
                    raise
            else:
                return
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_RETRY_PAUSE_S)

    def _commit(self, rows: Sequence[Row]) -> Path:
        provenance = json.dumps({**self._provenance, **self._counts()}, sort_keys=True)
        content = segment_bytes(rows, self._addresses, provenance)
        token = stored_digest(content)[:TOKEN_CHARACTERS]
        path = self._folder / str(
            SegmentName(attempt=self._attempt, sequence=self._sequence, token=token, rows=len(rows))
        )
        with committed_file(path) as temporary:
            temporary.write_bytes(content)
        return path

    def _record_storage_error(self, error: StorageError) -> None:
        if self._storage_error is None:
            self._failing_since_s = time.monotonic()
            if self._flush_thread and is_transient(error):
                _log.warning(
                    "%s %d responses are pending; retrying for %.0f s.",
                    error,
                    len(self._pending),
                    self._retry_timeout_s,
                )
        self._storage_error = error

    def _is_due(self) -> bool:
        waited_s = time.monotonic() - self._committed_at_s
        return len(self._pending) >= self._max_rows or waited_s >= self._flush_interval_s

    def _is_permanent(self) -> bool:
        """Return whether the error of the file system is not transient, or has lasted for `retry_timeout_s`."""
        error, failing_s = self._storage_error, time.monotonic() - self._failing_since_s
        return error is not None and (not is_transient(error) or failing_s >= self._retry_timeout_s)

    def _raise_flush_thread_error(self) -> None:
        """Raise an unexpected error of the flush thread, once; afterwards `add` commits rows that are due."""
        if self._flush_thread is not None and self._flush_thread.done():
            thread, self._flush_thread = self._flush_thread, None
            thread.result()

    def _check(self, key: RequestKey, response: Response) -> bool:
        """Return True; raise ValueError for a row that cannot be stored, when it is added rather than at the flush."""
        if key.task not in self._addresses:
            raise ValueError(f"the task '{key.task}' has no address; tasks with one: {sorted(self._addresses)}")
        fits = 0 <= key.doc_id < _INT64_END and 0 <= key.request_index < _INT32_END and 0 <= key.repeat < _INT32_END
        if not fits or not _REQUEST_DIGEST.fullmatch(key.digest):
            raise ValueError(f"{key} is not a valid key: a number is out of range, or the digest is malformed")
        if self._versions.setdefault(key.task, key.task_version) != key.task_version:
            raise ValueError(f"{key} has another task version than earlier rows: '{self._versions[key.task]}'")
        if response.cut_tokens is not None and not 0 <= response.cut_tokens < _INT32_END:
            raise ValueError(f"{key}: {response.cut_tokens} is not a number of removed tokens")
        return bool(response.kind.name)
