"""Fidelity panel: windows of held-out text, requests, and answers of transformers and of the synthetic backend."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcq.core.attempts import Attempt
from hpcq.core.errors import SetupError, UserInputError, WorkerError
from hpcq.core.work_records import PANEL_TASK, Calibration, EvaluateWork, FidelityPanel, MergeWork, Shard, Task
from hpcq.evaluate.backends.transformers.backend import AccelerateBackend
from hpcq.evaluate.merge import merge
from hpcq.evaluate.panel_requests import panel_requests, window_tokens
from hpcq.evaluate.panel_windows import WINDOW_CHARACTERS_PER_TOKEN, panel_windows, reserved_passages
from hpcq.evaluate.prefix.request_chunks import partition
from hpcq.evaluate.worker import evaluate
from hpcq.store import open_results, read_results
from hpcq.store.top_logprobs import unpack
from tests.tiny_llama import write_base

MakeWork = Callable[..., EvaluateWork]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of 60 passages of 104 characters, two of them equal."""
    path = tmp_path / "text.jsonl"
    passages = [f"{number % 59:03d} " + "abcd " * 20 for number in range(60)]
    path.write_text("".join(json.dumps({"text": passage}) + "\n" for passage in passages))
    return path


def panel(path: Path, **fields: object) -> FidelityPanel:
    """A panel of three windows of 16 tokens, for which one passage is long enough."""
    defaults = {"digest": None, "windows": 3, "window_tokens": 16, "path": str(path)}
    return FidelityPanel(**{**defaults, **fields})  # type: ignore[arg-type]


def calibration(path: Path, samples: int) -> Calibration:
    """A calibration of `samples` sequences, each of which may read one passage of the text."""
    return Calibration(digest=None, samples=samples, sequence_length=16, path=str(path))


def test_windows_begin_with_passages_that_no_other_window_has(text: Path) -> None:
    """Windows have the same length, no passage twice, and an order that depends on the seed alone."""
    windows = panel_windows(panel(text, windows=59))
    assert {len(window) for window in windows} == {16 * WINDOW_CHARACTERS_PER_TOKEN}
    assert len({window[:3] for window in windows}) == 59
    assert panel_windows(panel(text)) == windows[:3]
    assert panel_windows(panel(text, seed=2)) != windows[:3]


def test_what_the_calibration_may_read_is_left_out(text: Path) -> None:
    """The panel has no passage of the calibration set, whose tokenizer is unknown; what is left may be too short."""
    reserved = calibration(text, samples=30)
    read = reserved_passages(reserved)
    assert len(read) == 28  # 30 sequences of 16 tokens with 6 characters each, in passages of 104
    windows = panel_windows(panel(text, windows=20, reserved=reserved))
    assert not {window[:3] for window in windows} & {str(passage)[:3] for passage in read}
    with pytest.raises(
        UserInputError,
        match=r"text for \d+ windows of 16 tokens besides what the calibration may read, but .* needs 59",
    ):
        panel_windows(panel(text, windows=59, reserved=reserved))


def test_a_text_that_changed_or_has_chats_is_refused(text: Path, tmp_path: Path) -> None:
    """The panel is the one of the plan, and plain text."""
    with pytest.raises(SetupError, match="the run was planned with 000000000000…"):
        panel_windows(panel(text, digest="0" * 64))
    with pytest.raises(SetupError, match="is missing: stage the manifest"):
        panel_windows(panel(tmp_path / "none.jsonl"))
    chat = tmp_path / "chat.jsonl"
    chat.write_text(json.dumps({"text": [{"role": "user", "content": "Hello"}]}) + "\n")
    with pytest.raises(UserInputError, match=r"has chat messages: set fidelity\.column"):
        panel_windows(panel(chat))


def test_the_second_reading_has_other_batches(text: Path) -> None:
    """The baseline's windows are read again one by one and in another order, or in pairs if batches have one row."""
    requests = list(panel_requests(Task(name=PANEL_TASK, panel=panel(text, repeats=2)), is_synthetic=False))
    for rows, expected in ((3, [[0, 1, 2], [2], [1], [0]]), (1, [[0], [1], [2], [2], [0, 1]])):
        chunks = [[request.key.doc_id for request in chunk.requests] for chunk in partition(requests, rows=rows)]
        assert chunks == expected


def test_a_window_with_too_few_tokens_is_an_error(text: Path) -> None:
    """It is never shorter than the others."""
    [request, *_] = panel_requests(Task(name=PANEL_TASK, panel=panel(text)), is_synthetic=False)
    assert window_tokens(request, list(range(20))) == list(range(16))
    with pytest.raises(WorkerError, match="Window 0 of the fidelity panel has 15 tokens, fewer than the 16"):
        window_tokens(request, list(range(15)))


def test_transformers_reads_the_logits_of_whole_windows(text: Path, tmp_path: Path, make_work: MakeWork) -> None:
    """Tokens, log-probabilities and their order are those of one forward pass of the model, in batches of any size."""
    checkpoint = write_base(tmp_path / "model")
    task = Task(name=PANEL_TASK, panel=panel(text, repeats=2, top=8))
    work = make_work(backend="accelerate", tasks=(task,), checkpoint_path=str(checkpoint), batch_size=2)
    backend = AccelerateBackend(work)
    backend.load()
    requests = list(panel_requests(task, is_synthetic=False))
    chunks = [chunk.requests for chunk in partition(requests, rows=2)]
    found = {request.key: response for request, response in backend.stream(chunks, ())}
    assert len(found) == 6
    for request in requests:
        packed = found[request.key].logprobs
        assert packed
        window = unpack(packed)
        with torch.inference_mode():
            logits = backend._lm.model(torch.tensor(window.tokens[None])).logits[0, :-1]
        logprobs = torch.log_softmax(logits.float(), dim=-1).numpy()
        rows = np.arange(15)
        assert window.tokens.tolist() == backend._lm.tok_encode(request.arguments[0])[:16]
        assert window.next_logprobs == pytest.approx(logprobs[rows, window.tokens[1:]], abs=1e-5)
        assert window.top_logprobs == pytest.approx(-np.sort(-logprobs, axis=1)[:, :8], abs=1e-5)
        assert np.take_along_axis(logprobs, window.top_ids.astype(np.int64), 1) == pytest.approx(
            window.top_logprobs, abs=1e-5
        )


def test_a_rehearsal_reads_the_panel_in_shards(
    tmp_path: Path,
    make_work: MakeWork,
    make_attempt: Callable[[str], Attempt],
    make_merge: Callable[..., MergeWork],
) -> None:
    """Two shards of the synthetic backend answer all windows once; the merge has them, and no score of them."""
    tasks = (Task(name="arc_challenge", limit=2), Task(name=PANEL_TASK, panel=panel(tmp_path, repeats=2, windows=5)))
    for index in range(2):
        evaluate(make_work(index, 2, tasks=tasks), make_attempt(f"evaluate.{index}"))
    work = replace(make_work(tasks=tasks), shard=Shard())
    merge(make_merge(work), make_attempt("merge"))
    path = tmp_path / "run" / "results.h5"
    results = read_results(path)
    assert (results.merge["missing"], results.merge["expected"]) == (0, 2 * 4 + 10)
    with open_results(path) as file:
        found = file.panel(work.variant.id, PANEL_TASK)
        assert found
        assert list(zip(found.window.tolist(), found.repeat.tolist(), strict=True)) == [
            (window, repeat) for window in range(5) for repeat in range(2)
        ]
        assert found.top_ids.shape == (10, 15, 64)


def test_a_calibration_that_read_more_is_refused(
    text: Path, tmp_path: Path, make_work: MakeWork, make_attempt: Callable[[str], Attempt]
) -> None:
    """The record of the checkpoint shows how many passages the calibration read: the panel must have left them out."""
    checkpoint = write_base(tmp_path / "model")
    (checkpoint / "hpcq.json").write_text(json.dumps({"calibration": {"passages_used": 29}}))
    task = Task(name=PANEL_TASK, panel=panel(text, reserved=calibration(text, samples=30)))
    work = make_work(backend="accelerate", tasks=(task,), checkpoint_path=str(checkpoint))
    with pytest.raises(UserInputError, match="its calibration read 29 passages, more than the 28"):
        evaluate(work, make_attempt("evaluate.x"))
