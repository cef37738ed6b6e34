"""Cost of the store: committing segments compared with plain writes, and loading them compared with plain reads."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hpcq.store import RequestKey, Response, SegmentWriter, load_index, segment_paths

SEGMENTS = 200
ROWS = 500
ROUNDS = 3


def commit_segments(folder: Path) -> None:
    """Commit 200 segments of 500 log-likelihoods each, as a worker does."""
    with SegmentWriter(
        folder,
        attempt=1,
        addresses={"task": "address"},
        provenance={"node": "here"},
        flush_interval_s=1e9,
        max_rows=ROWS,
    ) as writer:
        for document in range(SEGMENTS * ROWS):
            digest = hashlib.md5(str(document).encode(), usedforsecurity=False).hexdigest()
            key = RequestKey("task", "1", document, 0, 0, digest)
            writer.add(key, Response(loglikelihood=-document / 7, is_greedy=False))


def write_durably(folder: Path, contents: list[bytes]) -> None:
    """Write the same bytes with only write, fsync, rename and fsync of the folder."""
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    for number, content in enumerate(contents):
        temporary = folder / f".{number}"
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(folder / str(number))
        os.fsync(descriptor)
    os.close(descriptor)


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure all four in turns, and compare the fastest measurement of each."""
    times: dict[str, list[float]] = {"commit": [], "write": [], "load": [], "read": []}
    with tempfile.TemporaryDirectory(dir=".") as name:
        for number in range(ROUNDS):
            folder, plain = Path(name) / f"store-{number}", Path(name) / f"plain-{number}"
            times["commit"].append(seconds(lambda folder=folder: commit_segments(folder)))
            contents = [path.read_bytes() for path in segment_paths(folder)]
            times["write"].append(seconds(lambda plain=plain, contents=contents: write_durably(plain, contents)))
            times["load"].append(
                seconds(lambda folder=folder: len(load_index([folder], expect={"task": "address"}).responses))
            )
            times["read"].append(seconds(lambda folder=folder: [path.read_bytes() for path in segment_paths(folder)]))
    best = {name: min(found) for name, found in times.items()}
    rows = SEGMENTS * ROWS
    print(
        f"commit: {rows / best['commit']:,.0f} rows/s,"
        f" {best['commit'] / best['write']:.2f} times the time of plain durable writes"
    )
    print(f"load:   {rows / best['load']:,.0f} rows/s, {best['load'] / best['read']:.1f} times the time of plain reads")
    print(f"size:   {sum(map(len, contents)) / rows:.1f} bytes per row")


if __name__ == "__main__":
    main()
