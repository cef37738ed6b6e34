"""Snapshot of answered requests: the same for all shards of an evaluation, at any time of their start."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcq.core.attempts import Attempt
from hpcq.core.paths import segment_folders
from hpcq.core.work import EvaluateWork, Model, Scheme, Shard, Variant
from hpcq.evaluate.request_set import build_request_set
from hpcq.evaluate.resharding import answered_snapshot
from hpcq.evaluate.worker import evaluate
from hpcq.store import Index, RequestKey, count_rows, load_index, segment_paths

MakeWork = Callable[..., EvaluateWork]
MakeAttempt = Callable[[str], Attempt]

KEYS = [RequestKey("arc", "1", document, index, 0, f"{document:032x}") for document in range(40) for index in range(4)]

CONTENDER = """
import pickle, sys
from hpcq.evaluate.resharding import answered_snapshot
work, keys = pickle.loads(bytes.fromhex(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
print(len(answered_snapshot(work, keys, set(keys[: int(sys.argv[2])]))))
"""


def _index(work: EvaluateWork) -> Index:
    addresses = build_request_set(work.tasks, is_synthetic=True).addresses(work)
    return load_index(segment_folders(Path(work.segments_path).parent, work.variant), expect=addresses)


def _snapshots(work: EvaluateWork) -> list[Path]:
    return sorted(Path(work.segments_path).parent.glob("answered.*"))


def _work_at(folder: Path, index: int) -> EvaluateWork:
    scheme = Scheme(name="bf16", tool="none", method="none", weights="bf16", activations="bf16")
    return EvaluateWork(
        variant=Variant(model=Model(id="org/Tiny"), scheme=scheme),
        tasks=(),
        backend="synthetic",
        dtype="float32",
        checkpoint_path="",
        segments_path=str(folder / "segments" / f"unit{index}"),
        shard=Shard(index=index, count=3),
    )


@settings(max_examples=30)
@given(st.sets(st.sampled_from(KEYS)), st.permutations(KEYS), st.sets(st.sampled_from(KEYS)))
def test_later_shards_use_the_snapshot_of_the_first(
    tmp_path_factory: pytest.TempPathFactory, known: set[RequestKey], order: list[RequestKey], later: set[RequestKey]
) -> None:
    """With any later responses and any order of the requests, all shards get the same snapshot."""
    work = _work_at(tmp_path_factory.mktemp("run"), 0)

    assert answered_snapshot(work, KEYS, known) == known
    assert answered_snapshot(_work_at(Path(work.segments_path).parents[1], 1), order, later) == known


def test_of_shards_that_start_together_one_is_the_first(tmp_path: Path) -> None:
    """Eight processes with different answered requests all get the snapshot of one of them."""
    given_to = pickle.dumps((_work_at(tmp_path, 0), KEYS)).hex()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CONTENDER, given_to, str(known)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for known in range(10, 90, 10)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    sizes = {int(process.communicate("go\n", timeout=280)[0]) for process in processes}

    assert len(sizes) == 1
    assert sizes <= set(range(10, 90, 10))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1, "requests": "x", "answered": "ff"}'])
def test_a_damaged_snapshot_costs_only_balance(make_work: MakeWork, make_attempt: MakeAttempt, text: str) -> None:
    """Shards that cannot read the snapshot still answer everything, each request once."""
    evaluate(make_work(0, 3), make_attempt("evaluate.0"))
    (folder,) = _snapshots(make_work())
    (folder / "answered.json").write_text(text)
    for index in (1, 2):
        evaluate(make_work(index, 3), make_attempt(f"evaluate.{index}"))

    assert (len(_index(make_work())), _index(make_work()).duplicates) == (24, 0)


@pytest.mark.parametrize("later", [2, 7])
def test_another_number_of_shards_shares_what_is_missing(
    make_work: MakeWork, make_attempt: MakeAttempt, later: int
) -> None:
    """After two of four shards, any other number of shards answers the rest, each request once, in balance."""
    work = {"batch_size": 1}
    for index in (0, 1):
        evaluate(make_work(index, 4, **work), make_attempt(f"evaluate.{index}"))
    left = 24 - len(_index(make_work()))
    answered = []
    for index in range(later):
        attempt = make_attempt(f"evaluate.{index}of{later}")
        evaluate(make_work(index, later, **work), attempt)
        answered.append(attempt.record.facts.get("answered", 0))

    assert sum(answered) == left
    assert max(answered) <= -(-left // later) + 1
    assert (len(_index(make_work())), _index(make_work()).duplicates) == (24, 0)


def test_a_response_that_is_lost_later_belongs_to_a_shard(make_work: MakeWork, make_attempt: MakeAttempt) -> None:
    """Responses of the old shards that are lost after the new shards started are computed again, once."""
    for index in (0, 1):
        evaluate(make_work(index, 4, batch_size=1), make_attempt(f"evaluate.{index}"))
    evaluate(make_work(0, 3, batch_size=1), make_attempt("evaluate.0of3"))
    before = _index(make_work()).responses
    lost, damaged, *_ = segment_paths(Path(make_work(1, 4).segments_path))
    lost.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-1])
    for index in (1, 2, 0):
        evaluate(make_work(index, 3, batch_size=1), make_attempt(f"evaluate.{index}of3"))

    after = _index(make_work())
    assert (len(after), after.duplicates, len(after.set_aside)) == (24, 0, 1)
    assert before.items() <= after.responses.items()


def test_a_single_shard_writes_no_snapshot(make_work: MakeWork, make_attempt: MakeAttempt) -> None:
    """A single shard answers everything that is missing, without a snapshot."""
    evaluate(make_work(), make_attempt("evaluate.x"))

    assert _snapshots(make_work()) == []
    assert count_rows(Path(make_work().segments_path)) == 24


def test_another_evaluation_has_its_own_snapshot(make_work: MakeWork, make_attempt: MakeAttempt) -> None:
    """A snapshot belongs to one content address: another seed has another snapshot."""
    for seed in (1, 2):
        evaluate(make_work(0, 2, seed=seed), make_attempt(f"evaluate.{seed}"))

    assert len(_snapshots(make_work())) == 2
