"""Facts about who may make a checkpoint, shown with real processes, some of them killed."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcq.core.attempts import Attempt, AttemptRecord, now, read_attempts
from hpcq.core.processes import identity
from hpcq.core.work import Model, QuantizeWork, Scheme, Variant
from hpcq.quantize import checkpoint_lock
from hpcq.quantize.checkpoint_lock import Owner, claimed
from hpcq.quantize.synthetic import PAUSE_VARIABLE
from hpcq.quantize.worker import quantize
from tests.forked import started

REHEARSAL = Scheme(name="synthetic-w4a16", tool="synthetic", method="synthetic", weights="int4", activations="bf16")
PATIENCE_S = 60.0
CONTENDERS, TURNS = 20, 10


def record_of(number: int = 1, **changes: object) -> AttemptRecord:
    """An attempt of this process."""
    fields = {
        "unit": "quantize.x",
        "attempt": number,
        "job_id": "7",
        "node": "here",
        "pid": os.getpid(),
        "start": now(),
        "process": identity(os.getpid()),
    }
    return AttemptRecord(**{**fields, **changes})  # type: ignore[arg-type]


def work_in(folder: Path) -> QuantizeWork:
    """A rehearsal's work."""
    variant = Variant(scheme=REHEARSAL, model=Model(id="some/model"))
    return QuantizeWork(variant=variant, checkpoint_path=str(folder / "x"))


def worker(folder: Path, number: int, seconds: float) -> None:
    """One attempt at the rehearsal's checkpoint."""
    os.environ[PAUSE_VARIABLE] = str(seconds)
    quantize(work_in(folder), Attempt(folder / "attempts", record_of(number)))


def until(condition: Callable[[], object]) -> None:
    """Wait for something to come about."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.01)


def attempts_in(folder: Path) -> dict[int, AttemptRecord]:
    """Attempts by number."""
    return {record.attempt: record for record in read_attempts(folder / "attempts").get("quantize.x", [])}


def claim_of(checkpoint: Path, owner: Owner) -> Path:
    """Somebody's claim, which nobody has given back."""
    folder = checkpoint.with_name(checkpoint.name + ".claim") / "1"
    folder.mkdir(parents=True)
    (folder / "owner.json").write_text(json.dumps(dataclasses.asdict(owner)), encoding="utf-8")
    return folder


def elsewhere(owner: Owner, host: str) -> Owner:
    """The same owner on another host."""
    return dataclasses.replace(owner, process=" ".join([host, *owner.process.split()[1:]]), node=host)


def test_two_workers_make_a_checkpoint_once(tmp_path: Path) -> None:
    """Of two workers at once one makes it, the other waits and finds it; claim and blocks are gone then."""
    workers = [started(worker, tmp_path, number, 1.0) for number in (1, 2)]
    for process in workers:
        process.join(PATIENCE_S)
        assert process.exitcode == 0
    assert sorted(record.added for record in attempts_in(tmp_path).values()) == [0, 4]
    assert sum(record.facts.get("existed", False) for record in attempts_in(tmp_path).values()) == 1
    assert sorted(item.name for item in tmp_path.iterdir()) == ["attempts", "x"]


def test_who_waits_takes_over_from_a_killed_worker(tmp_path: Path) -> None:
    """A worker says for whom it waits; when that one is killed it goes on from its last block."""
    first = started(worker, tmp_path, 1, 400.0)
    until((tmp_path / "x.claim" / "1" / "owner.json").exists)
    second = started(worker, tmp_path, 2, 0.0)
    until(lambda: (attempts_in(tmp_path).get(2) or record_of()).phase)
    assert str(attempts_in(tmp_path)[2].phase).startswith(f"waiting for here (process {first.pid}), which makes this")
    first.kill()
    first.join()
    second.join(PATIENCE_S)
    assert second.exitcode == 0
    assert (tmp_path / "x" / "hpcq.json").is_file()


def test_a_killed_worker_s_blocks_are_used(tmp_path: Path) -> None:
    """What a killed worker had committed the next one restores, and the checkpoint is that of a calm run."""
    calm = tmp_path / "calm"
    worker(calm, 1, 0.0)
    first = started(worker, tmp_path, 1, 20.0)
    until(lambda: (attempts_in(tmp_path).get(1) or record_of()).added)
    first.kill()
    first.join()
    made = attempts_in(tmp_path)[1].added
    worker(tmp_path, 2, 0.0)
    facts = attempts_in(tmp_path)[2].facts
    assert facts["blocks_restored"] in (made, made + 1)  # killed between a commit and its note, perhaps
    assert facts["blocks_restored"] + facts["blocks_committed"] == 4
    assert (tmp_path / "x" / "model.safetensors").read_bytes() == (calm / "x" / "model.safetensors").read_bytes()


def contend(checkpoint: Path, seed: int) -> None:
    """Take the right, mark it while it is held, and die or fail in the midst of it; the tenth makes the checkpoint."""
    checkpoint_lock.POLL_INTERVAL_S = 0.02
    chance = random.Random(seed)  # noqa: S311  reproducible, not secret
    with claimed(checkpoint, Owner.of(record_of()), lambda _: None) as is_mine:
        if not is_mine:
            return
        mark, log = checkpoint.with_name("held"), checkpoint.with_name("log")
        held_by = mark.read_text(encoding="utf-8") if mark.exists() else ""
        mark.write_text(str(os.getpid()), encoding="utf-8")
        with log.open("a", encoding="utf-8") as turns:
            turns.write(f"{os.getpid()} {identity(int(held_by)) if held_by else None}\n")
        time.sleep(chance.uniform(0, 0.05))
        if len(log.read_text(encoding="utf-8").splitlines()) == TURNS:
            checkpoint.mkdir()
        elif chance.random() < 0.7:
            os.kill(os.getpid(), signal.SIGKILL)
        mark.unlink()


@pytest.mark.parametrize("seed", range(2))
def test_many_contenders_take_turns(seed: int, tmp_path: Path) -> None:
    """Of twenty that wait for a dead owner, and die or fail in their turns, never two hold the right at once."""
    claim_of(tmp_path / "x", dataclasses.replace(Owner.of(record_of()), process=f"{identity(os.getpid())}9"))
    crowd = [started(contend, tmp_path / "x", 100 * seed + number) for number in range(CONTENDERS)]
    for process in crowd:
        process.join(PATIENCE_S)
        assert process.exitcode in (0, -signal.SIGKILL)
    turns = [line.split(maxsplit=1) for line in (tmp_path / "log").read_text(encoding="utf-8").splitlines()]
    assert len({pid for pid, _ in turns}) == len(turns) == TURNS
    assert {held_by for _, held_by in turns} == {"None"}
    assert sorted(item.name for item in tmp_path.iterdir()) == ["log", "x"]


def test_a_claim_that_was_given_back_is_free(tmp_path: Path) -> None:
    """Where work failed, and its process lives on, the next one need not wait."""
    with pytest.raises(RuntimeError, match="failed"), claimed(tmp_path / "x", Owner.of(record_of()), pytest.fail):
        raise RuntimeError("failed")
    with claimed(tmp_path / "x", dataclasses.replace(Owner.of(record_of()), process=""), pytest.fail) as is_mine:
        assert is_mine


def test_nobody_guesses_about_another_host(tmp_path: Path) -> None:
    """A local owner on another host may live: whoever waits names it, and goes on when its claim is removed."""
    folder = claim_of(tmp_path / "x", elsewhere(Owner.of(record_of()), "other-host")).parent
    told: list[str] = []
    turn = threading.Event()

    def wait() -> None:
        with claimed(tmp_path / "x", Owner.of(record_of()), told.append):
            turn.set()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    until(lambda: told)
    assert told[0].startswith(f"waiting for other-host (process {os.getpid()}), which makes this checkpoint since ")
    assert told[0].endswith(f"if that machine is gone, remove {folder}")
    assert not turn.is_set()
    (folder / "1" / "owner.json").unlink()
    (folder / "1").rmdir()
    folder.rmdir()
    assert turn.wait(PATIENCE_S)
    waiting.join(PATIENCE_S)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"process": "HOST BOOT 999999999 1"}, "there is no such process"),
        ({"process": "HOST BOOT PID 1"}, "the process has that number, and began at another time"),
        ({"process": "HOST other-boot PID 1"}, "the host was started anew"),
        ({"process": "SAME"}, "it is this very process"),
        ({"process": "other b 1 1", "launcher": "slurm", "restart": 1}, "it is this job, before it was requeued"),
    ],
)
def test_a_dead_owner_s_claim_is_taken_at_once(changes: dict[str, object], reason: str, tmp_path: Path) -> None:
    """Evidence that the owner is gone is enough, without waiting."""
    mine = identity(os.getpid()) or ""
    host, boot, pid, _ = mine.split()
    text = str(changes["process"])
    for word, meant in (("SAME", mine), ("HOST", host), ("BOOT", boot), ("PID", pid)):
        text = text.replace(word, meant)
    claim_of(tmp_path / "x", dataclasses.replace(Owner.of(record_of()), **{**changes, "process": text}))
    me = Owner.of(record_of(launcher="slurm", restart=2))
    with claimed(tmp_path / "x", me, lambda told: pytest.fail(f"{reason}, but: {told}")) as is_mine:
        assert is_mine


def test_a_claim_that_cannot_be_understood_is_nobody_s(tmp_path: Path) -> None:
    """A damaged owner's file does not hold up anybody for ever."""
    (claim_of(tmp_path / "x", Owner.of(record_of())) / "owner.json").write_text('{"unit":', encoding="utf-8")
    with claimed(tmp_path / "x", Owner.of(record_of()), pytest.fail) as is_mine:
        assert is_mine


def test_leftovers_of_a_kill_after_the_commit_are_removed(tmp_path: Path) -> None:
    """Claim and blocks of a checkpoint that is there are removed by the next worker that looks."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x.blocks").mkdir()
    (tmp_path / "x.blocks" / "layer-1-of-4.safetensors").write_bytes(b"")
    claim_of(tmp_path / "x", elsewhere(Owner.of(record_of()), "other-host"))
    worker(tmp_path, 1, 0.0)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["attempts", "x"]
    assert list((tmp_path / "x").iterdir()) == []
