"""Count file operations of Python code: files opened, folders listed, and entries of these folders.

As a program, `python -m tests.operations OUTPUT FOLDER ARGUMENT …`, it runs hpcq's command line and writes the counts
of operations in FOLDER to OUTPUT.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass
class Operations:
    """Counts of operations in a folder and the folders in it.

    Attributes:
        opened: Files opened.
        listed: Folders listed.
        entries: Entries of the listed folders.
    """

    opened: int = 0
    listed: int = 0
    entries: int = 0

    @property
    def total(self) -> int:
        """All operations, with one per entry."""
        return self.opened + self.listed + self.entries


_active: list[tuple[str, Operations]] = []
_installed: list[bool] = []


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if not _active or event not in ("open", "os.scandir", "os.listdir"):
        return
    path = arguments[0]
    if not isinstance(path, str | os.PathLike) or not str(Path(path).absolute()).startswith(_active[-1][0]):
        return
    folder, counts = _active.pop()  # the hook must not count its own listing
    if event == "open":
        counts.opened += 1
    else:
        counts.listed += 1
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            counts.entries += sum(1 for _ in Path(path).iterdir())
    _active.append((folder, counts))


@contextlib.contextmanager
def counted_operations(folder: Path) -> Iterator[Operations]:
    """Count operations of the block in `folder`, of this process."""
    if not _installed:
        sys.addaudithook(_hook)  # it cannot be removed
        _installed.append(True)
    counts = Operations()
    _active.append((str(folder), counts))
    try:
        yield counts
    finally:
        _active.clear()


def main() -> int:
    """Run hpcq's command line."""
    from hpcq.cli import main as run

    output, folder, *arguments = sys.argv[1:]
    with counted_operations(Path(folder)) as counts:
        code = run(arguments)
    Path(output).write_text(json.dumps(asdict(counts)))
    return code


if __name__ == "__main__":
    sys.exit(main())
