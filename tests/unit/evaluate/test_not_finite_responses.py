"""Models whose numbers are NaN or infinite have no responses and no scores; cut prompts are counted.

Observed before: truthfulqa_mc1 of a model that overflowed in float16 was 100.0, because every response was NaN. One NaN
weight gave the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from safetensors.torch import load_file, save_file

from hpcq.core.attempts import Attempt
from hpcq.core.item_selection import parse_ranges
from hpcq.core.work_records import EvaluateWork, MergeWork, Model, Task, Variant
from hpcq.evaluate.backends.transformers.backend import AccelerateBackend
from hpcq.evaluate.merge import merge
from hpcq.evaluate.request_set import build_request_set
from hpcq.evaluate.requests import GENERATE, LOGLIKELIHOOD, LOGLIKELIHOOD_ROLLING, Request, requests_of
from hpcq.evaluate.worker import evaluate
from hpcq.report.cut_prompts import cut_prompts, cut_prompts_text
from hpcq.report.make_report import MergedRun
from hpcq.store import Response, SegmentWriter, count_rows, read_responses, read_results
from hpcq.verify.marks import Mark, MarkKind
from hpcq.verify.responses import NotFiniteError
from tests.tiny_llama import write_base
from tests.unit.evaluate.conftest import BASE

MakeWork = Callable[..., EvaluateWork]
MakeMerge = Callable[..., MergeWork]
MakeAttempt = Callable[[str], Attempt]

DOWN = "model.layers.1.mlp.down_proj"
GREEDY = {"until": ["\n"], "max_gen_toks": 4, "do_sample": False}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small Llama without damage."""
    return write_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def overflowing(base: Path, tmp_path: Path) -> Path:
    """Copy the model with a down projection whose output is above 65504, the largest number of float16."""
    folder = tmp_path / "overflowing"
    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{DOWN}.weight"] *= 1e5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def work_of(folder: Path, tmp_path: Path, tasks: Sequence[Task] = (), **fields: Any) -> EvaluateWork:
    """Return an evaluation with the accelerate backend on the CPU."""
    variant = Variant(model=Model(id="tiny", path=str(folder)), scheme=BASE)
    defaults = {
        "variant": variant,
        "tasks": tuple(tasks),
        "backend": "accelerate",
        "dtype": "float32",
        "device": "cpu",
        "checkpoint_path": str(folder),
        "segments_path": str(tmp_path / "run" / "segments" / f"evaluate.{variant.id}"),
        "batch_size": 4,
        "flush_interval_s": 0.0,
    }
    return EvaluateWork(**{**defaults, **fields})


def requests(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Request]:
    """Return one request for each of `arguments`, of a task that lm-eval does not have."""
    instances = [
        Instance(request_type=kind, doc={}, arguments=one, idx=0, metadata=("made_up", number, 1))
        for number, one in enumerate(arguments)
    ]
    return list(requests_of(instances, "1"))


def loaded(work: EvaluateWork) -> AccelerateBackend:
    """Return a loaded backend."""
    backend = AccelerateBackend(work)
    backend.load()
    return backend


@pytest.mark.parametrize("options", [(), (("prefix_sharing", False),)], ids=["shared prefixes", "HFLM"])
def test_a_unit_with_such_a_response_fails(
    overflowing: Path,
    options: tuple[tuple[str, bool], ...],
    arc_items: Path,
    tmp_path: Path,
    make_attempt: MakeAttempt,
) -> None:
    """The error names document, request, layer and fix; nothing is committed or complete; and the fix works.

    Observed: truthfulqa_mc1 was 100.0 with every response NaN, after an overflow in float16.
    """
    task = Task(name="arc_challenge", limit=4, data_path=str(arc_items))
    work = work_of(overflowing, tmp_path, [task], dtype="float16", options=options)
    message = (
        rf"arc_challenge document \d request \d: its log-likelihood is nan \(the first layer with such an output is"
        rf' {DOWN}; its weights are finite\)\. .*set evaluate\.dtype = "bfloat16"'
    )
    with pytest.raises(NotFiniteError, match=message):
        evaluate(work, make_attempt("evaluate.x"))
    assert count_rows(Path(work.segments_path)) == 0
    assert not (Path(work.segments_path) / "complete.json").exists()

    evaluate(work_of(overflowing, tmp_path, [task], dtype="bfloat16", options=options), make_attempt("evaluate.x"))


def test_generation_from_such_logits_fails(overflowing: Path, tmp_path: Path) -> None:
    """Greedy decoding of NaN would repeat token 0; the error names the request and the layer instead."""
    backend = loaded(work_of(overflowing, tmp_path, dtype="float16"))
    chunk = requests(GENERATE, [("What is it?", GREEDY), ("And where?", GREEDY)])

    with pytest.raises(NotFiniteError, match=f"made_up document 0 request 0: the logits of its text.*{DOWN}"):
        list(backend.stream([chunk], answered=()))

    with torch.no_grad():
        backend._lm.model.get_submodule(DOWN).weight[3, 5] = math.nan
    with pytest.raises(NotFiniteError, match=f"{DOWN}; its weight is not finite"):
        list(backend.stream([chunk], answered=()))


def test_logits_that_exclude_tokens_are_finite(base: Path, tmp_path: Path) -> None:
    """A model that gives some tokens a probability of zero generates text."""
    backend = loaded(work_of(base, tmp_path))
    [request] = requests(GENERATE, [("What is it?", GREEDY)])

    def exclude(_module: Any, _arguments: Any, output: Any) -> Any:
        output.logits[..., :5] = -math.inf
        return output

    with backend._lm.model.register_forward_hook(exclude):
        [(_, response)] = backend.stream([[request]], answered=())
    assert response.text is not None


def test_removed_tokens_are_counted(base: Path, tmp_path: Path) -> None:
    """Each response has the number of tokens by which its prompt was cut: shared, by HFLM, generated, in windows.

    Observed: prompts were cut from the left without a warning or a count.
    """
    pairs = [("x" * 30, " yes"), ("x" * 21, " yes"), ("x" * 12, " yes"), ("x" * 30, " yes, of course")]
    texts = [("x" * 30, GREEDY), ("x" * 20, GREEDY), ("x" * 19, GREEDY)]
    chunks = [
        requests(LOGLIKELIHOOD, pairs),
        requests(GENERATE, texts),
        requests(LOGLIKELIHOOD_ROLLING, [("x" * 99,)]),
    ]
    expected = [[9, 0, 0, 20], [10, 0, 0], [0]]
    for shares_prefixes in (True, False):
        backend = loaded(work_of(base, tmp_path, options=(("max_length", 24), ("prefix_sharing", shares_prefixes))))
        found = dict(backend.stream(chunks, answered=()))
        assert [[found[request].cut_tokens for request in chunk] for chunk in chunks] == expected


def test_a_task_with_a_stored_nan_has_no_score(
    base: Path, arc_items: Path, tmp_path: Path, make_merge: MakeMerge, make_attempt: MakeAttempt
) -> None:
    """Segments of earlier versions may have NaN, -inf or a probability above one: the merge withholds and marks.

    Observed: a task whose responses are all NaN had the score 100.0.
    """
    task = Task(name="arc_challenge", limit=4, data_path=str(arc_items))
    work = work_of(base, tmp_path, [task])
    request_set = build_request_set(work.tasks, is_synthetic=False)
    writer = SegmentWriter(
        Path(work.segments_path),
        attempt=1,
        addresses=request_set.addresses(work),
        provenance={"unit": "evaluate.x", "attempt_start": "2026-01-01T00:00:00+00:00"},
    )
    values = iter([math.nan, -math.inf, 3.0])
    with writer:
        for request in request_set.requests:
            writer.add(request.key, Response(next(values, -1.0), is_greedy=False, cut_tokens=0))
    merge_work = make_merge(work)

    merge(merge_work, make_attempt("merge.run"))

    [variant] = read_results(Path(merge_work.results_path)).variants
    assert variant.scores == ()
    [mark] = map(Mark.from_json, variant.marks or ())
    assert (mark.kind, mark.task, mark.affected, mark.total) == (MarkKind.NOT_FINITE, "arc_challenge", 3, 14)
    assert len(read_responses(Path(merge_work.results_path), work.variant.id)) == 14


def test_cut_prompts_are_marked_in_results(
    base: Path,
    arc_items: Path,
    tmp_path: Path,
    make_merge: MakeMerge,
    make_attempt: MakeAttempt,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """results.h5 has the number of cut prompts per task and the mark of its scores; the attempt has the number, too.

    The log, the mark and `report --verbose` state their share, and the last one their items.

    Observed: scores of cut prompts looked like all others.
    """
    task = Task(name="arc_challenge", limit=4, data_path=str(arc_items))
    work = work_of(base, tmp_path, [task], options=(("max_length", 45),))
    attempt = make_attempt("evaluate.x")
    evaluate(work, attempt)
    merge_work = make_merge(work)

    merge(merge_work, make_attempt("merge.run"))

    import h5py

    [variant] = read_results(Path(merge_work.results_path)).variants
    [mark] = map(Mark.from_json, variant.marks or ())
    assert (mark.kind, mark.task, mark.total) == (MarkKind.PROMPTS_CUT, "arc_challenge", 14)
    assert mark.affected == attempt.record.facts["cut_prompts"] > 0
    with h5py.File(merge_work.results_path) as file:
        assert file[f"responses/{variant.variant}/arc_challenge"].attrs["cut_prompts"] == mark.affected
        assert file[f"scores/{variant.variant}/arc_challenge"].attrs["marks"] == mark.sentence
    share = f"{mark.affected} of 14 prompts ({100 * mark.affected / 14:.3g} %)"
    assert mark.detail.startswith(share)
    assert f"arc_challenge: {share} were cut from the left" in caplog.text
    run = MergedRun(name="run", results=Path(merge_work.results_path), plan_document={})
    [found] = cut_prompts([run])
    responses = read_responses(run.results, variant.variant)
    cut = sorted({key.doc_id for key, response in responses.items() if response.cut_tokens})
    assert parse_ranges(found.items) == cut
    assert f"arc_challenge: {share} cut from the left, by up to" in cut_prompts_text([found])
