"""Cost of continuous checkpoints in an evaluation: commits every 30 s and every second, compared with rows in memory.

Two backends: the synthetic one, which sleeps as a GPU would compute (50 requests/s), and a loop of numpy and Python
that is never idle, so that checkpoints take time from it. The first is measured in wall-clock time, the second in
processor time. On a shared machine both ratios vary by more than checkpoints cost, so the share of seconds inside
commits is printed as well. In wall-clock time this share is an upper bound of the cost, because commits run in parallel
with the work; in processor time it is the cost.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from parts.thresholds import Threshold, print_thresholds

from hpcq.core.work_records import EvaluateWork, Model, Scheme, Variant
from hpcq.evaluate.backends.synthetic import SyntheticBackend
from hpcq.evaluate.requests import LOGLIKELIHOOD, Request
from hpcq.store import RequestKey, Response, SegmentWriter, load_index

ROUNDS = 2
BATCH = 8
WORK_S = 33.0
"""Seconds of each measurement, so that it includes one commit after 30 s."""
INTERVALS_S = {"none": None, "every 30 s": 30.0, "every 1 s": 1.0}
MAX_RATIO = 1.01

Answer = Callable[[Sequence[Request]], list[Response]]
Add = Callable[[RequestKey, Response], object]


def synthetic() -> Answer:
    """Return the synthetic backend with 20 ms per request."""
    scheme = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
    work = EvaluateWork(
        variant=Variant(model=Model(id="org/model"), scheme=scheme),
        tasks=(),
        backend="synthetic",
        dtype="float32",
        checkpoint_path="",
        segments_path="",
        batch_size=BATCH,
        synthetic_options=(("request_seconds", 0.02),),
    )
    backend = SyntheticBackend(work)

    def answer(batch: Sequence[Request]) -> list[Response]:
        found = dict(backend.stream([batch], answered=()))
        return [found[request] for request in batch]

    return answer


def computed() -> Answer:
    """Return a function that computes a few milliseconds of numpy and Python per request, in one thread.

    BLAS uses one thread because the matrices are small.
    """
    weights = np.random.default_rng(1234).standard_normal((64, 64))

    def answer(batch: Sequence[Request]) -> list[Response]:
        found = []
        for request in batch:
            state = weights
            for _ in range(60):
                state = np.tanh(state @ weights / 64)
            spread = sum(number * number for number in range(4000)) % 7
            found.append(Response(-abs(float(state[0, 0])) - spread - request.key.doc_id / 7, is_greedy=False))
        return found

    return answer


def make_batch(number: int) -> list[Request]:
    """Return eight requests that are not in any other batch."""
    documents = range(number * BATCH, (number + 1) * BATCH)
    digests = [hashlib.sha256(str(document).encode()).hexdigest()[:32] for document in documents]
    keys = [
        RequestKey("task", "1", *parts) for parts in ((at, 0, 0, d) for at, d in zip(documents, digests, strict=True))
    ]
    return [Request(key=key, kind=LOGLIKELIHOOD, arguments=("", "")) for key in keys]


def evaluate(answer: Answer, batches: int, add: Add) -> None:
    """Pass each answer to `add`, as a worker does."""
    for number in range(batches):
        batch = make_batch(number)
        for request, response in zip(batch, answer(batch), strict=True):
            add(request.key, response)


class TimedWriter(SegmentWriter):
    """Segment writer that measures the seconds inside commits, with a clock of the committing thread."""

    clock: Callable[[], float] = time.perf_counter
    seconds = 0.0

    def flush(self) -> Path | None:
        """Commit, and add the seconds."""
        start = self.clock()
        path = super().flush()
        self.seconds += self.clock() - start
        return path


def measure(answer: Answer, batches: int, interval_s: float | None, clock: Callable[[], float]) -> tuple[float, float]:
    """Return the seconds by `clock` until the last row is committed, and the share of them inside commits."""
    with tempfile.TemporaryDirectory(dir=".") as name:
        start = clock()
        if interval_s is None:
            rows: dict[RequestKey, Response] = {}
            evaluate(answer, batches, rows.__setitem__)
            return clock() - start, 0.0
        with TimedWriter(
            Path(name), attempt=1, addresses={"task": "a"}, provenance={"node": "here"}, flush_interval_s=interval_s
        ) as writer:
            writer.clock = time.thread_time if clock is time.process_time else clock
            evaluate(answer, batches, writer.add)
        seconds = clock() - start
        if len(load_index([Path(name)], expect={"task": "a"})) != batches * BATCH:
            raise SystemExit("rows are missing: the measurement is not valid")
        return seconds, writer.seconds / seconds


def compare(name: str, make: Callable[[], Answer], clock: Callable[[], float]) -> None:
    """Measure the intervals in turns, and compare the fastest measurement of each."""
    answer = make()
    start_s = time.perf_counter()
    evaluate(answer, 50, lambda *_: None)
    batches = int(WORK_S / (time.perf_counter() - start_s) * 50)
    times: dict[str, list[tuple[float, float]]] = {interval: [] for interval in INTERVALS_S}
    for _ in range(ROUNDS):
        for interval, interval_s in INTERVALS_S.items():
            times[interval].append(measure(answer, batches, interval_s, clock))
    best = {interval: min(found) for interval, found in times.items()}
    (plain, _), *others = best.values()
    ratios = ", ".join(
        f"{interval} {seconds / plain:.4f} ({share:.2%} in commits)"
        for interval, (seconds, share) in zip([*best][1:], others, strict=True)
    )
    print(f"{name}: {batches * BATCH / plain:,.0f} requests/s; time relative to no checkpoints: {ratios}")
    share = best["every 30 s"][1]
    print_thresholds(
        [
            Threshold(
                name=f"{name}, checkpoints every 30 s",
                measured=1 / (1 - share),
                limit=MAX_RATIO,
                is_maximum=True,
                unit=" ×",
            )
        ]
    )


def main() -> None:
    """Measure both backends at the same time: one of them sleeps."""
    sleeping = multiprocessing.Process(target=compare, args=("synthetic, wall clock", synthetic, time.perf_counter))
    sleeping.start()
    compare("computed, processor time", computed, time.process_time)
    sleeping.join()


if __name__ == "__main__":
    main()
