"""What the shards of an evaluation hold for answered: the same for all, whenever each begins."""

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
from hpcq.core.work import EvaluateWork, Model, Scheme, Shard, Variant
from hpcq.evaluate.request_set import questions_of
from hpcq.evaluate.resharding import answered_at_first
from hpcq.evaluate.unit_folders import unit_folders
from hpcq.evaluate.worker import evaluate
from hpcq.store import Index, RequestKey, count_rows, load, segment_paths

MakeWork = Callable[..., EvaluateWork]
MakeAttempt = Callable[[str], Attempt]

KEYS = [RequestKey("arc", "1", document, index, 0, f"{document:032x}") for document in range(40) for index in range(4)]

CONTENDER = """
import pickle, sys
from hpcq.evaluate.resharding import answered_at_first
work, keys = pickle.loads(bytes.fromhex(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
print(len(answered_at_first(work, keys, set(keys[: int(sys.argv[2])]))))
"""


def _index(work: EvaluateWork) -> Index:
    addresses = questions_of(work.tasks, is_rehearsal=True).addresses(work)
    return load(unit_folders(Path(work.segments_path).parent, work.variant), expect=addresses)


def _begun(work: EvaluateWork) -> list[Path]:
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
def test_later_shards_go_by_what_the_first_one_knew(
    tmp_path_factory: pytest.TempPathFactory, known: set[RequestKey], order: list[RequestKey], later: set[RequestKey]
) -> None:
    """Whatever was answered since, and in whatever order the requests come, all shards are told the same."""
    work = _work_at(tmp_path_factory.mktemp("run"), 0)

    assert answered_at_first(work, KEYS, known) == known
    assert answered_at_first(_work_at(Path(work.segments_path).parents[1], 1), order, later) == known


def test_of_shards_that_begin_at_once_one_is_the_first(tmp_path: Path) -> None:
    """Eight processes that know different things are all told what one of them knew."""
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
    told = {int(process.communicate("go\n", timeout=50)[0]) for process in processes}

    assert len(told) == 1
    assert told <= set(range(10, 90, 10))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1, "requests": "x", "answered": "ff"}'])
def test_a_damaged_file_costs_the_balance_alone(make_work: MakeWork, make_attempt: MakeAttempt, text: str) -> None:
    """Shards that cannot read what the first one knew answer everything all the same, each request once."""
    evaluate(make_work(0, 3), make_attempt("evaluate.0"))
    (folder,) = _begun(make_work())
    (folder / "answered.json").write_text(text)
    for index in (1, 2):
        evaluate(make_work(index, 3), make_attempt(f"evaluate.{index}"))

    assert (len(_index(make_work())), _index(make_work()).duplicates) == (24, 0)


@pytest.mark.parametrize("later", [2, 7])
def test_another_number_of_shards_shares_what_is_missing(
    make_work: MakeWork, make_attempt: MakeAttempt, later: int
) -> None:
    """After two of four shards any other number answers the rest, each request once, and none of them all of it."""
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


def test_an_answer_that_is_lost_later_is_somebodys(make_work: MakeWork, make_attempt: MakeAttempt) -> None:
    """What the old shards had answered when the new ones began, and has vanished since, is answered again, once."""
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


def test_one_shard_writes_nothing_down(make_work: MakeWork, make_attempt: MakeAttempt) -> None:
    """A shard that is alone answers whatever is missing."""
    evaluate(make_work(), make_attempt("evaluate.x"))

    assert _begun(make_work()) == []
    assert count_rows(Path(make_work().segments_path)) == 24


def test_another_evaluation_in_the_same_place_begins_anew(make_work: MakeWork, make_attempt: MakeAttempt) -> None:
    """What was answered is told for one content address: other seeds have a beginning of their own."""
    for seed in (1, 2):
        evaluate(make_work(0, 2, seed=seed), make_attempt(f"evaluate.{seed}"))

    assert len(_begun(make_work())) == 2
