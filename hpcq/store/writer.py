"""The writer: takes responses from a worker and sees to it that they are on disk soon, whatever the worker is doing.

Knows how a segment is laid out, and what a file system may refuse. Must not know what computes the responses, nor read
any. A thread of its own keeps the time, because a back end may be inside one call for minutes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event, RLock
from types import TracebackType
from typing import Self

from hpcq.core.errors import StorageError
from hpcq.core.files import committed_file, is_passing, sweep
from hpcq.store.checksummed import digest_in
from hpcq.store.columns import Row
from hpcq.store.records import DIGEST_CHARACTERS, RequestKey, Response
from hpcq.store.segments import Provenance, SegmentName, segment_bytes

FLUSH_INTERVAL_S = 30.0
PATIENCE_S = 600.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 30.0
"""Between two tries while the file system refuses; each pause is twice the one before it."""
OVERFLOW = 4
"""Times `max_rows` that may wait while the file system refuses, before whoever adds has to wait as well."""

_TOKEN_CHARACTERS = 16
_REQUEST_DIGEST = re.compile(rf"[0-9a-f]{{{DIGEST_CHARACTERS}}}")
_INT32_END, _INT64_END = 2**31, 2**63
_log = logging.getLogger(__name__)


class SegmentWriter:
    """Buffers responses and commits them to `folder` as segments; what a commit has written survives anything.

    A segment is committed when rows come in and `flush_interval_s` have passed since the last commit or `max_rows` are
    waiting, at `flush`, and at the end of the `with` block, also when it ends by an exception. Inside the block a
    thread keeps the time, and commits whether or not rows come in, beside the work. Never an empty one.

    No room, no quota, or a server that is away: inside the block the thread tries again for `patience_s`, while the
    worker computes on, until more than `OVERFLOW` times `max_rows` wait. Rows are kept until they are committed.

    Args:
        folder: the unit's own folder; made when needed.
        attempt: the number of the attempt, for the order of names.
        addresses: task → content address of its responses, for every task that may come.
        provenance: who computed this and with what; kept in every segment.
        counts: what to add to that at the moment of a commit, counted over the attempt so far; called by any thread.
        flush_interval_s: the seconds of work that a kill may cost.
        max_rows: rows in a segment, unless one `add_all` brings more or the file system refuses.
        patience_s: how long an outage of the file system may last.
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
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._folder = folder
        self._attempt = attempt
        self._addresses = dict(addresses)
        self._versions: dict[str, str] = {}
        self._provenance = dict(provenance)
        self._counts = counts
        self._flush_interval_s = flush_interval_s
        self._max_rows = max_rows
        self._patience_s = patience_s
        self._sequence = 0
        # Rows are appended by one thread, and taken from the front by the one that holds the lock, both in one step of
        # the interpreter. The lock is reentrant because a signal's handler may flush on the thread that it interrupts.
        self._waiting: list[Row] = []
        self._committing = RLock()
        self._committed_at_s = time.monotonic()
        self._refusal: StorageError | None = None
        self._refused_since_s = 0.0
        self._timekeeper: Future[None] | None = None
        self._wake = Event()
        self._is_over = False

    def add(self, key: RequestKey, response: Response) -> None:
        """Take one response; it is safe once a segment with it is committed."""
        self.add_all([(key, response)])

    def add_all(self, rows: Iterable[Row]) -> None:
        """Take a batch of responses, which is committed in one segment.

        Raises:
            ValueError: a row that no segment can hold; none of the batch is taken.
            StorageError: a commit that was due failed, and within a `with` block cannot be hoped for; rows are kept.
        """
        batch = [(key, response) for key, response in rows if self._check(key, response)]
        self._waiting.extend(batch)
        self._raise_what_ended_the_timekeeper()
        if not self._is_due():
            return
        if self._timekeeper is None or self._is_hopeless():
            self.flush()
        elif self._refusal is not None:
            if len(self._waiting) > OVERFLOW * self._max_rows:
                self._flush_patiently()
        elif len(self._waiting) < self._max_rows and self._flush_interval_s > 0:
            self._wake.set()
        else:
            self._flush_now_or_later()

    def flush(self) -> Path | None:
        """Commit what is waiting, in one try, from any thread; the new segment, or None where nothing was waiting.

        Raises:
            StorageError: the file system refused; the rows are kept for the next try.
        """
        with self._committing:
            rows = self._waiting[:]
            if not rows:
                return None
            try:
                path = self._commit(rows)
            except StorageError as refusal:
                self._note(refusal)
                raise
            del self._waiting[: len(rows)]
            self._sequence += 1
            self._committed_at_s = time.monotonic()
            self._refusal = None
            return path

    def _flush_now_or_later(self) -> None:
        """Flush; a refusal that may pass is left to the timekeeper."""
        try:
            self.flush()
        except StorageError:
            if self._is_hopeless():
                raise
            self._wake.set()

    def __enter__(self) -> Self:
        sweep(self._folder)
        threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hpcq-checkpoint")
        self._timekeeper = threads.submit(self._keep_time)
        threads.shutdown(wait=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over = True
        self._wake.set()
        if kind is not None and issubclass(kind, (SystemExit, KeyboardInterrupt)):
            self.flush()
        else:
            self._flush_patiently()
        self._raise_what_ended_the_timekeeper()

    def _keep_time(self) -> None:
        """Commit whatever waits at every interval, and sooner what was refused; runs on the writer's own thread.

        A refusal is kept in `_refusal`: whoever adds next, or ends the block, meets it if it may not pass.
        """
        pause_s = FIRST_PAUSE_S
        while not self._is_over:
            is_refused = self._refusal is not None
            self._wake.wait(pause_s if is_refused else self._flush_interval_s or LONGEST_PAUSE_S)
            if self._is_over:
                return
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S) if is_refused else FIRST_PAUSE_S
            with contextlib.suppress(StorageError):
                self.flush()
            self._wake.clear()

    def _flush_patiently(self) -> None:
        """Flush, and again after growing pauses as long as that may help.

        Raises:
            StorageError: it does not help any more.
        """
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                self.flush()
            except StorageError:
                if self._is_hopeless():
                    raise
            else:
                return
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _commit(self, rows: Sequence[Row]) -> Path:
        provenance = json.dumps({**self._provenance, **self._counts()}, sort_keys=True)
        content = segment_bytes(rows, self._addresses, provenance)
        token = digest_in(content)[:_TOKEN_CHARACTERS]
        path = self._folder / str(
            SegmentName(attempt=self._attempt, sequence=self._sequence, token=token, rows=len(rows))
        )
        with committed_file(path) as temporary:
            temporary.write_bytes(content)
        return path

    def _note(self, refusal: StorageError) -> None:
        if self._refusal is None:
            self._refused_since_s = time.monotonic()
            if self._timekeeper and is_passing(refusal):
                _log.warning(
                    "%s %d responses wait; trying again for %.0f s.", refusal, len(self._waiting), self._patience_s
                )
        self._refusal = refusal

    def _is_due(self) -> bool:
        waited_s = time.monotonic() - self._committed_at_s
        return len(self._waiting) >= self._max_rows or waited_s >= self._flush_interval_s

    def _is_hopeless(self) -> bool:
        """Whether what the file system refused cannot be expected to pass, or not any more."""
        refusal, refused_s = self._refusal, time.monotonic() - self._refused_since_s
        return refusal is not None and (not is_passing(refusal) or refused_s >= self._patience_s)

    def _raise_what_ended_the_timekeeper(self) -> None:
        """Anything but a refusal of the file system; said once, after which whoever adds commits what is due."""
        if self._timekeeper is not None and self._timekeeper.done():
            ended, self._timekeeper = self._timekeeper, None
            ended.result()

    def _check(self, key: RequestKey, response: Response) -> bool:
        """Raise for what cannot be written, here where the caller can be told, not at the flush; else True."""
        if key.task not in self._addresses:
            raise ValueError(f"the task '{key.task}' has no address; known are {sorted(self._addresses)}")
        fits = 0 <= key.doc_id < _INT64_END and 0 <= key.request_index < _INT32_END and 0 <= key.repeat < _INT32_END
        if not fits or not _REQUEST_DIGEST.fullmatch(key.digest):
            raise ValueError(f"{key} is no request's key: a number is out of range, or the digest is not one")
        if self._versions.setdefault(key.task, key.task_version) != key.task_version:
            raise ValueError(f"{key} is of another version than '{self._versions[key.task]}', which came before it")
        return bool(response.kind.name)
