"""Standard output of a verb that changes a run: a reader that closes the pipe, or a full disk, cannot interrupt it."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import TextIO


class _SteadyOutput(io.TextIOBase):
    """Passes each line on at once; after an error of the stream, output is dropped.

    Attributes:
        error: The first error.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream.isatty()

    def write(self, text: str, /) -> int:
        if self.error is None:
            try:
                self._stream.write(text)
                if "\n" in text:
                    self._stream.flush()
            except OSError as error:
                self.error = error
        return len(text)

    def flush(self) -> None:
        if self.error is None:
            try:
                self._stream.flush()
            except OSError as error:
                self.error = error


@contextlib.contextmanager
def steady_output() -> Iterator[None]:
    """Print each line at once in the block, and complete the block even if nothing more can be printed.

    Raises:
        OSError: After the block: its output could not be written, except because the reader has closed the pipe.
    """
    steady = _SteadyOutput(sys.stdout)
    with contextlib.redirect_stdout(steady):
        yield
        steady.flush()
    if steady.error is not None and not isinstance(steady.error, BrokenPipeError):
        raise steady.error
