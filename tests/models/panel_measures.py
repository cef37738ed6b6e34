"""Measures of the fidelity panel on a model and its quantized checkpoints.

`python -m tests.models.panel_measures FOLDER ...` in the environment 'transformers'. The folders are checkpoints, such
as those of the quickstart; the first is the baseline. Prints JSON lines: how far the stored bound is below the exact
divergence of all logits, also if the variant had been asked for the baseline's tokens; the noise floor; and the ranking
of the schemes in each draw of text.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcq.catalog.packages import staged_calibration_path
from hpcq.core.json_records import from_json
from hpcq.core.work_records import PANEL_TASK, EvaluateWork, FidelityPanel, Model, Scheme, Task, Variant
from hpcq.evaluate.backends.transformers.backend import AccelerateBackend
from hpcq.evaluate.panel_requests import panel_requests, window_tokens
from hpcq.evaluate.requests import Request
from hpcq.report.panel import window_measures
from hpcq.store import PanelTable
from hpcq.store.top_logprobs import unpack

BASE = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")


def load(checkpoint: Path) -> AccelerateBackend:
    """Load a checkpoint in float32; a quantized one as its files declare."""
    scheme = BASE
    if (checkpoint / "hpcq.json").is_file():
        recorded = json.loads((checkpoint / "hpcq.json").read_text(encoding="utf-8"))["variant"]["scheme"]
        scheme = from_json(Scheme, json.dumps(recorded))
    work = EvaluateWork(
        variant=Variant(model=Model(id=checkpoint.name, path=str(checkpoint)), scheme=scheme),
        tasks=(Task(name=PANEL_TASK),),
        backend="accelerate",
        dtype="float32",
        checkpoint_path=str(checkpoint),
        segments_path="",
        batch_size=4,
        options=(("prefix_sharing", False),),
    )
    backend = AccelerateBackend(work)
    backend.load()
    return backend


def requests_of(seed: int, windows: int, length: int) -> list[Request]:
    """Windows of the packaged text, drawn with a seed."""
    panel = FidelityPanel(
        digest=None,
        windows=windows,
        window_tokens=length,
        seed=seed,
        path=str(staged_calibration_path("boolq-passages")),
    )
    return list(panel_requests(Task(name=PANEL_TASK, panel=panel), is_synthetic=False))


def table(backend: AccelerateBackend, requests: list[Request], rows: int) -> PanelTable:
    """Read the windows in batches of `rows`."""
    backend._batch_size = rows
    found = dict(backend.stream([requests], ()))
    windows = [unpack(found[request].logprobs or b"") for request in requests]
    return PanelTable(
        window=np.arange(len(windows)),
        repeat=np.zeros(len(windows), np.int32),
        digest=np.array([request.key.digest.encode() for request in requests]),
        **{name: np.stack([getattr(one, name) for one in windows]) for name in vars(windows[0])},
    )


def all_logprobs(backend: AccelerateBackend, request: Request) -> np.ndarray[Any, Any]:
    """Log-probabilities of the whole vocabulary at each position of a window."""
    tokens = window_tokens(request, backend._lm.tok_encode(request.arguments[0]))
    with torch.inference_mode():
        logits = backend._lm._model_call(torch.tensor(tokens)[None])[0, :-1]
        return torch.log_softmax(logits.float(), dim=-1).numpy()


def at_baselines_tokens(p: np.ndarray[Any, Any], q: np.ndarray[Any, Any], top: int = 64) -> float:
    """Divergence of the baseline's most probable tokens and the rest, if the variant is asked for just these."""
    ids = np.argpartition(-p, top, axis=1)[:, :top]
    cells = [np.take_along_axis(one, ids, 1).astype(np.float64) for one in (p, q)]
    rest = [np.maximum(1e-9, 1 - np.exp(one).sum(axis=1)) for one in cells]
    inside = (np.exp(cells[0]) * (cells[0] - cells[1])).sum(axis=1)
    return float((inside + rest[0] * np.log(rest[0] / rest[1])).mean())


def main() -> None:
    """Measure, and print one JSON document per result as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--exact", type=int, default=8, help="windows of which all logits are compared")
    arguments = parser.parse_args()
    draws = [requests_of(seed, arguments.windows, arguments.length) for seed in range(arguments.draws)]
    base_tables: list[PanelTable] = []
    base_logprobs: list[np.ndarray[Any, Any]] = []
    means: dict[str, list[float]] = {}
    for checkpoint in arguments.checkpoints:
        backend, name = load(checkpoint), checkpoint.name
        tables = [table(backend, requests, 4) for requests in draws]
        if not base_tables:
            base_tables = tables
            base_logprobs = [all_logprobs(backend, request) for request in draws[0][: arguments.exact]]
            again = table(backend, draws[0], 1)
            floor, agreement = window_measures(base_tables[0], again)
            report(name, floor=float(floor.mean()), floor_agreement=float(agreement.mean()))
            continue
        exact, asked = [], []
        for request, p in zip(draws[0], base_logprobs, strict=False):
            q = all_logprobs(backend, request)
            exact.append(float((np.exp(p.astype(np.float64)) * (p.astype(np.float64) - q)).sum(axis=1).mean()))
            asked.append(at_baselines_tokens(p, q))
        measured = [window_measures(base, own) for base, own in zip(base_tables, tables, strict=True)]
        bounds = measured[0][0][: arguments.exact]
        means[name] = [float(divergence.mean()) for divergence, _ in measured]
        report(
            name,
            exact=float(np.mean(exact)),
            bound=float(bounds.mean()),
            share=float(bounds.mean() / np.mean(exact)),
            share_of_baselines_tokens=float(np.mean(asked) / np.mean(exact)),
            largest_excess=float((bounds - exact).max()),
            draws=means[name],
            agreement=[float(agreement.mean()) for _, agreement in measured],
        )
    for draw in range(arguments.draws):
        report(f"ranking of draw {draw}", ranking=sorted(means, key=lambda name, at=draw: means[name][at]))


def report(name: str, **values: object) -> None:
    """Print one line of JSON."""
    sys.stdout.write(json.dumps({"name": name, **values}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
