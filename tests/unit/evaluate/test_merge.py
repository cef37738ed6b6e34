"""Merge of synthetic evaluations: its report, and that it is idempotent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hpcq.core.attempts import Attempt
from hpcq.core.work_records import EvaluateWork, MergeWork
from hpcq.evaluate.merge import merge
from hpcq.evaluate.request_set import build_request_set
from hpcq.evaluate.worker import evaluate
from hpcq.store import Response, SegmentWriter, read_results, segment_paths

MakeWork = Callable[..., EvaluateWork]
MakeMerge = Callable[..., MergeWork]
MakeAttempt = Callable[[str], Attempt]


def test_synthetic_results_have_responses_and_no_scores(
    make_work: MakeWork, make_merge: MakeMerge, make_attempt: MakeAttempt
) -> None:
    """Merged synthetic evaluations have every response, are marked as rehearsals, and have no score."""
    evaluations = [make_work(model=f"org/{name}") for name in ("One", "Two")]
    for work in evaluations:
        evaluate(work, make_attempt(f"evaluate.{work.variant.id}"))
    work = make_merge(*evaluations)

    merge(work, make_attempt("merge.run"))

    results = read_results(Path(work.results_path))
    assert results.merge["expected"] == results.merge["found"] == 48
    assert results.provenance["rehearsal"] is True
    assert [dict(one.rows) for one in results.variants] == [{"arc_challenge": 20, "gsm8k": 4}] * 2
    assert all(one.provenance["rehearsal"] and not one.scores for one in results.variants)


def test_repeated_merges_give_the_same_bytes(
    make_work: MakeWork, make_merge: MakeMerge, make_attempt: MakeAttempt
) -> None:
    """A merge of the same segments leaves the results unchanged, and writes the same bytes if they were deleted."""
    evaluate(make_work(), make_attempt("evaluate.x"))
    work = make_merge(make_work())
    path = Path(work.results_path)
    merge(work, make_attempt("merge.run"))
    first, written_ns = path.read_bytes(), path.stat().st_mtime_ns
    merge(work, make_attempt("merge.run"))
    assert path.stat().st_mtime_ns == written_ns

    path.unlink()
    merge(work, make_attempt("merge.run"))

    assert path.read_bytes() == first


def test_copies_of_the_weights_are_not_counted(
    make_work: MakeWork, make_merge: MakeMerge, make_attempt: MakeAttempt, tmp_path: Path
) -> None:
    """The size on disk is that of the files that are loaded. Observed: consolidated.safetensors was counted, too."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("model.safetensors", "consolidated.safetensors"):
        (folder / name).write_bytes(bytes(1000))
    evaluation = make_work(checkpoint_path=str(folder))
    evaluate(evaluation, make_attempt("evaluate.x"))
    work = make_merge(evaluation)

    merge(work, make_attempt("merge.run"))

    [variant] = read_results(Path(work.results_path)).variants
    assert variant.provenance["checkpoint_bytes"] == 1000


def test_missing_requests_are_counted_by_task(
    make_work: MakeWork, make_merge: MakeMerge, make_attempt: MakeAttempt
) -> None:
    """A merge with missing shards succeeds and reports the missing requests by variant and task."""
    evaluate(make_work(0, 2), make_attempt("evaluate.0"))
    work = make_merge(make_work())

    merge(work, make_attempt("merge.run"))

    report = read_results(Path(work.results_path)).merge
    assert 0 < report["missing"] < 24
    assert report["found"] + report["missing"] == report["expected"] == 24
    assert sum(row["rows"] for row in report["missing_from"]) == report["missing"]
    assert {row["variant"] for row in report["missing_from"]} == {make_work().variant.id}


def test_later_segments_are_merged(make_work: MakeWork, make_merge: MakeMerge, make_attempt: MakeAttempt) -> None:
    """A merge of additional segments replaces the results; a torn segment is set aside and reported."""
    evaluate(make_work(0, 2), make_attempt("evaluate.0"))
    work = make_merge(make_work())
    merge(work, make_attempt("merge.run"))
    evaluate(make_work(1, 2), make_attempt("evaluate.1"))
    torn = segment_paths(Path(make_work(1, 2).segments_path))[0]
    torn.write_bytes(torn.read_bytes()[:-100])

    merge(work, make_attempt("merge.run"))

    report = read_results(Path(work.results_path)).merge
    assert report["set_aside"] == 1
    assert report["missing"] == 1


def test_tokens_of_attempts_are_added_up(make_work: MakeWork, make_merge: MakeMerge, make_attempt: MakeAttempt) -> None:
    """Each attempt counts with the numbers of its last segment; all values of `prefix_sharing` are listed."""
    work = make_work()
    request_set = build_request_set(work.tasks, is_synthetic=True)
    segments = [(1, 100, 40, "exact"), (1, 300, 90, "exact"), (2, 50, 50, "switched off")]
    for number, (attempt, asked, computed, sharing) in enumerate(segments):
        writer = SegmentWriter(
            Path(work.segments_path),
            attempt=attempt,
            addresses=request_set.addresses(work),
            provenance={"unit": "evaluate.x", "attempt_start": f"2026-01-0{attempt}T00:00:00+00:00"}
            | {"prefix_sharing": sharing},
            counts=lambda asked=asked, computed=computed: {"asked_tokens": asked, "computed_tokens": computed},  # type: ignore[misc]
        )
        writer.add(request_set.requests[number].key, Response(loglikelihood=-1.0, is_greedy=True))
        writer.flush()
    merge_work = make_merge(work)

    merge(merge_work, make_attempt("merge.run"))

    (variant,) = read_results(Path(merge_work.results_path)).variants
    assert (variant.provenance["asked_tokens"], variant.provenance["computed_tokens"]) == (350, 140)
    assert variant.provenance["prefix_sharing"] == "exact, switched off"


def test_results_without_token_counts_have_no_counts(
    make_work: MakeWork, make_merge: MakeMerge, make_attempt: MakeAttempt
) -> None:
    """Variants of a synthetic evaluation have no token counts instead of zeros."""
    evaluate(make_work(), make_attempt("evaluate.x"))
    work = make_merge(make_work())

    merge(work, make_attempt("merge.run"))

    (variant,) = read_results(Path(work.results_path)).variants
    assert not {"asked_tokens", "computed_tokens"} & set(variant.provenance)
