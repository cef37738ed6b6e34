"""Agreement of both backends on a fidelity panel in float32, and the noise floor of each: one JSON line per comparison.

`python -m tests.vllm.panel_agreement [--windows N] [--length N]` in the environment 'vllm-cpu'.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hpcq.catalog.packages import staged_calibration_path
from hpcq.core.work_records import PANEL_TASK, FidelityPanel, Task
from hpcq.evaluate.backends.interface import Backend
from hpcq.evaluate.backends.transformers.backend import AccelerateBackend
from hpcq.evaluate.backends.vllm.backend import VllmBackend
from hpcq.evaluate.panel_requests import panel_requests
from hpcq.evaluate.prefix.request_chunks import partition
from hpcq.report.panel import window_measures
from hpcq.report.statistics.next_tokens import NextTokens, matched
from hpcq.store import PanelTable
from hpcq.store.top_logprobs import unpack
from tests.vllm.conftest import make_work


def read(backend: Backend, task: Task) -> dict[int, PanelTable]:
    """Return the windows by repeat."""
    requests = list(panel_requests(task, is_synthetic=False))
    chunks = [chunk.requests for chunk in partition(requests, rows=4)]
    rows = sorted(backend.stream(chunks, ()), key=lambda row: row[0].key)
    tables = {}
    for repeat in range(2):
        found = [unpack(response.logprobs or b"") for request, response in rows if request.key.repeat == repeat]
        tables[repeat] = PanelTable(
            window=np.arange(len(found)),
            repeat=np.full(len(found), repeat, np.int32),
            digest=np.array([b""] * len(found)),
            **{name: np.stack([getattr(one, name) for one in found]) for name in vars(found[0])},
        )
    return tables


def compare(name: str, one: PanelTable, other: PanelTable) -> None:
    """Print the differences of two readings."""
    divergences, agreements = window_measures(one, other)
    largest = 0.0
    for at in range(len(one.window)):
        own, theirs = (
            NextTokens(
                ids=table.top_ids[at].astype(np.int64),
                logprobs=table.top_logprobs[at].astype(np.float64),
                following=table.tokens[at, 1:].astype(np.int64),
                following_logprobs=table.next_logprobs[at].astype(np.float64),
            )
            for table in (one, other)
        )
        found = matched(own.ids, theirs)
        largest = max(largest, float(np.abs(found - own.logprobs)[np.isfinite(found)].max()))
    document = {
        "name": name,
        "positions": one.next_logprobs.size,
        "equal_tokens": bool(np.array_equal(one.tokens, other.tokens)),
        "largest_difference_of_following": float(np.abs(one.next_logprobs - other.next_logprobs).max()),
        "largest_difference_of_top": largest,
        "divergence": float(divergences.mean()),
        "agreement": float(agreements.mean()),
    }
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the panel with both backends, and print all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    given = parser.parse_args(arguments)
    text = str(staged_calibration_path("boolq-passages"))
    panel = FidelityPanel(digest=None, windows=given.windows, window_tokens=given.length, repeats=2, path=text)
    task = Task(name=PANEL_TASK, panel=panel)
    with tempfile.TemporaryDirectory() as folder:
        work = make_work(Path(folder), tasks=(task,), batch_size=4, options=(("max_length", given.length + 1),))
        vllm = VllmBackend(work)
        vllm.load()
        ours = read(vllm, task)
        accelerate = AccelerateBackend(replace(work, backend="accelerate", engine_options=()))
        accelerate.load()
        theirs = read(accelerate, task)
    compare("accelerate, vllm", theirs[0], ours[0])
    compare("vllm, vllm again", ours[0], ours[1])
    compare("accelerate, accelerate again", theirs[0], theirs[1])


if __name__ == "__main__":
    main()
