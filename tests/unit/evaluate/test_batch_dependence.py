"""Models whose responses depend on the rest of the batch are computed one request at a time by the accelerate backend.

Observed: with a `longrope` rotary embedding (Phi-3, Phi-4-mini), all texts of a batch got the frequencies of its
longest. With evaluate.batch_size = 8 a log-likelihood was 6.7 nats off, without a mark.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcq.core.work_records import EvaluateWork, Model, Variant
from hpcq.evaluate.backends.transformers.backend import AccelerateBackend
from hpcq.evaluate.requests import GENERATE, LOGLIKELIHOOD
from tests.tiny_llama import write_base
from tests.unit.evaluate.conftest import BASE
from tests.unit.evaluate.test_not_finite_responses import GREEDY, requests

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "short_factor": [1.0] * 16,
    "long_factor": [8.0] * 16,
    "original_max_position_embeddings": 32,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small model whose embedding is another one for texts of more than 32 tokens."""
    folder = write_base(tmp_path_factory.mktemp("models") / "longrope")
    config = json.loads((folder / "config.json").read_text())
    config |= {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("options", [(), (("prefix_sharing", False),)], ids=["shared prefixes", "HFLM"])
def test_responses_do_not_depend_on_the_batch_size(folder: Path, options: tuple[tuple[str, bool], ...]) -> None:
    """Log-likelihoods and texts of short requests are the same beside a long one and alone."""
    variant = Variant(model=Model(id="tiny", path=str(folder)), scheme=BASE)
    long, short, other = "What is it? " * 8, "What is it?", "And where is it?"
    chunks = [
        requests(LOGLIKELIHOOD, [(long, " yes"), (short, " yes"), (other, " no")]),
        requests(GENERATE, [(long, GREEDY), (short, GREEDY), (other, GREEDY)]),
    ]
    found = []
    for batch_size in (1, 3):
        work = EvaluateWork(
            variant=variant,
            tasks=(),
            backend="accelerate",
            dtype="float32",
            device="cpu",
            checkpoint_path=str(folder),
            segments_path="",
            batch_size=batch_size,
            options=options,
        )
        backend = AccelerateBackend(work)
        backend.load()
        found.append({request.key: response for request, response in backend.stream(chunks, answered=())})
    assert found[0] == found[1]
