"""What continuous checkpoints cost an evaluation: commits every 30 s, and every second, against keeping rows in memory.

Two back ends: the rehearsal's, which sleeps as long as a GPU would compute (50 requests a second), and a loop of numpy
and Python that never rests, where every microsecond of the checkpoint is one that the loop does not have. The first is
told in seconds of the clock; the second in seconds of the processor. On a machine that others use, both ratios waver by
more than checkpoints cost: so the seconds inside them are told as well, as a share of the whole. By the clock that is
the most that they can cost, since they run beside the work; by the processor it is what they cost.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from parts.bars import Bar, tell

from hpcq.core.work import EvaluateWork, Model, Scheme, Variant
from hpcq.evaluate.backends.synthetic import SyntheticBackend
from hpcq.evaluate.requests import LOGLIKELIHOOD, Request
from hpcq.store import RequestKey, Response, SegmentWriter, load

ROUNDS = 2
BATCH = 8
WORK_S = 33.0
"""Of each measurement: an interval of 30 s ends within it."""
INTERVALS_S = {"none": None, "every 30 s": 30.0, "every 1 s": 1.0}
BAR = 1.01

Answer = Callable[[Sequence[Request]], list[Response]]
Add = Callable[[RequestKey, Response], object]


def rehearsed() -> Answer:
    """The rehearsal's back end at 20 ms a request."""
    scheme = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
    work = EvaluateWork(
        variant=Variant(model=Model(id="org/model"), scheme=scheme),
        tasks=(),
        backend="synthetic",
        dtype="float32",
        checkpoint_path="",
        segments_path="",
        batch_size=BATCH,
        pace=(("request_seconds", 0.02),),
    )
    backend = SyntheticBackend(work)

    def answer(batch: Sequence[Request]) -> list[Response]:
        found = dict(backend.stream([batch], known=()))
        return [found[request] for request in batch]

    return answer


def computed() -> Answer:
    """A few milliseconds of numpy and Python a request, in matrices so small that BLAS leaves them to one thread."""
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


def batch_number(number: int) -> list[Request]:
    """Eight requests that no other batch has."""
    documents = range(number * BATCH, (number + 1) * BATCH)
    digests = [hashlib.sha256(str(document).encode()).hexdigest()[:32] for document in documents]
    keys = [
        RequestKey("task", "1", *parts) for parts in ((at, 0, 0, d) for at, d in zip(documents, digests, strict=True))
    ]
    return [Request(key=key, kind=LOGLIKELIHOOD, arguments=("", "")) for key in keys]


def evaluate(answer: Answer, batches: int, add: Add) -> None:
    """What a worker does with the answers: each is handed over as it comes."""
    for number in range(batches):
        batch = batch_number(number)
        for request, response in zip(batch, answer(batch), strict=True):
            add(request.key, response)


class Timed(SegmentWriter):
    """Counts the seconds inside commits, by a clock of the thread that commits."""

    clock: Callable[[], float] = time.perf_counter
    seconds = 0.0

    def flush(self) -> Path | None:
        """As ever."""
        began = self.clock()
        path = super().flush()
        self.seconds += self.clock() - began
        return path


def measure(answer: Answer, batches: int, interval_s: float | None, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds by `clock` until the last row is safe, and the share of them inside commits."""
    with tempfile.TemporaryDirectory(dir=".") as name:
        began = clock()
        if interval_s is None:
            kept: dict[RequestKey, Response] = {}
            evaluate(answer, batches, kept.__setitem__)
            return clock() - began, 0.0
        with Timed(
            Path(name), attempt=1, addresses={"task": "a"}, provenance={"node": "here"}, flush_interval_s=interval_s
        ) as writer:
            writer.clock = time.thread_time if clock is time.process_time else clock
            evaluate(answer, batches, writer.add)
        taken = clock() - began
        if len(load([Path(name)], expect={"task": "a"})) != batches * BATCH:
            raise SystemExit("rows are missing: what was measured was no checkpoint")
        return taken, writer.seconds / taken


def compare(name: str, make: Callable[[], Answer], clock: Callable[[], float]) -> None:
    """Interleave the intervals, and compare the fastest of each."""
    answer = make()
    began_s = time.perf_counter()
    evaluate(answer, 50, lambda *_: None)
    batches = int(WORK_S / (time.perf_counter() - began_s) * 50)
    times: dict[str, list[tuple[float, float]]] = {interval: [] for interval in INTERVALS_S}
    for _ in range(ROUNDS):
        for interval, interval_s in INTERVALS_S.items():
            times[interval].append(measure(answer, batches, interval_s, clock))
    best = {interval: min(found) for interval, found in times.items()}
    (plain, _), *others = best.values()
    told = ", ".join(
        f"{interval} {taken / plain:.4f} ({share:.2%} in commits)"
        for interval, (taken, share) in zip([*best][1:], others, strict=True)
    )
    print(f"{name}: {batches * BATCH / plain:,.0f} requests/s; times the work without checkpoints: {told}")
    share = best["every 30 s"][1]
    tell([Bar(name=f"{name}, checkpoints every 30 s", measured=1 / (1 - share), bar=BAR, is_most=True, unit=" ×")])


def main() -> None:
    """Both back ends at once: one of them sleeps."""
    asleep = multiprocessing.Process(target=compare, args=("rehearsal, clock", rehearsed, time.perf_counter))
    asleep.start()
    compare("computed, processor", computed, time.process_time)
    asleep.join()


if __name__ == "__main__":
    main()
