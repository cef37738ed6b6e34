"""The lock of a checkpoint, tested with real processes, some of which are killed."""

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

from hpcq.core.attempts import Attempt, AttemptRecord, read_attempts, utc_now
from hpcq.core.outcomes import Launcher
from hpcq.core.processes import identity
from hpcq.core.work import Model, QuantizeWork, Scheme, Variant
from hpcq.quantize import checkpoint_lock
from hpcq.quantize.checkpoint_lock import LockOwner, lock_checkpoint
from hpcq.quantize.synthetic import SECONDS_VARIABLE
from hpcq.quantize.worker import quantize
from tests.forkserver import start_process

SYNTHETIC = Scheme(name="synthetic-w4a16", tool="synthetic", method="synthetic", weights="int4", activations="bf16")
TIMEOUT_S = 280.0
CONTENDERS, TURNS = 20, 10


def record_of(number: int = 1, **changes: object) -> AttemptRecord:
    """An attempt of this process."""
    fields = {
        "unit": "quantize.x",
        "attempt": number,
        "job_id": "7",
        "node": "here",
        "pid": os.getpid(),
        "start": utc_now(),
        "process": identity(os.getpid()),
    }
    return AttemptRecord(**{**fields, **changes})  # type: ignore[arg-type]


def work_in(folder: Path) -> QuantizeWork:
    """A work for the synthetic tool."""
    variant = Variant(scheme=SYNTHETIC, model=Model(id="some/model"))
    return QuantizeWork(variant=variant, checkpoint_path=str(folder / "x"))


def worker(folder: Path, number: int, seconds: float) -> None:
    """Run one attempt to create the synthetic checkpoint."""
    os.environ[SECONDS_VARIABLE] = str(seconds)
    quantize(work_in(folder), Attempt(folder / "attempts", record_of(number)))


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s, "timeout"
        time.sleep(0.01)


def attempts_in(folder: Path) -> dict[int, AttemptRecord]:
    """Attempts by number."""
    return {record.attempt: record for record in read_attempts(folder / "attempts").get("quantize.x", [])}


def claim_of(checkpoint: Path, owner: LockOwner) -> Path:
    """The folder of a new claim of `owner`, not released."""
    folder = checkpoint.with_name(checkpoint.name + ".claim") / "1"
    folder.mkdir(parents=True)
    (folder / "owner.json").write_text(json.dumps(dataclasses.asdict(owner)), encoding="utf-8")
    return folder


def elsewhere(owner: LockOwner, host: str) -> LockOwner:
    """The same owner on another host."""
    return dataclasses.replace(owner, process=" ".join([host, *owner.process.split()[1:]]), node=host)


def test_two_workers_create_a_checkpoint_once(tmp_path: Path) -> None:
    """Of two concurrent workers one creates the checkpoint, the other waits for it; claim and blocks are removed."""
    workers = [start_process(worker, tmp_path, number, 1.0) for number in (1, 2)]
    for process in workers:
        process.join(TIMEOUT_S)
        assert process.exitcode == 0
    assert sorted(record.committed for record in attempts_in(tmp_path).values()) == [0, 4]
    assert sum(record.facts.get("existed", False) for record in attempts_in(tmp_path).values()) == 1
    assert sorted(item.name for item in tmp_path.iterdir()) == ["attempts", "x"]


def test_a_waiting_worker_takes_over_from_a_killed_one(tmp_path: Path) -> None:
    """A worker reports whom it waits for; when that worker is killed, it continues from the last block."""
    first = start_process(worker, tmp_path, 1, 400.0)
    wait_until((tmp_path / "x.claim" / "1" / "owner.json").exists)
    second = start_process(worker, tmp_path, 2, 0.0)
    wait_until(lambda: (attempts_in(tmp_path).get(2) or record_of()).phase)
    assert str(attempts_in(tmp_path)[2].phase).startswith(f"waiting for here (process {first.pid}), which has been")
    first.kill()
    first.join()
    second.join(TIMEOUT_S)
    assert second.exitcode == 0
    assert (tmp_path / "x" / "hpcq.json").is_file()


def test_a_killed_worker_s_blocks_are_used(tmp_path: Path) -> None:
    """The next worker restores what a killed one had committed; the checkpoint is that of an uninterrupted run."""
    uninterrupted = tmp_path / "uninterrupted"
    worker(uninterrupted, 1, 0.0)
    first = start_process(worker, tmp_path, 1, 20.0)
    wait_until(lambda: (attempts_in(tmp_path).get(1) or record_of()).committed)
    first.kill()
    first.join()
    made = attempts_in(tmp_path)[1].committed
    worker(tmp_path, 2, 0.0)
    facts = attempts_in(tmp_path)[2].facts
    assert facts["blocks_restored"] in (made, made + 1)  # it may be killed between a commit and its record
    assert facts["blocks_restored"] + facts["blocks_committed"] == 4
    resumed, expected = (folder / "x" / "model.safetensors" for folder in (tmp_path, uninterrupted))
    assert resumed.read_bytes() == expected.read_bytes()


def contend(checkpoint: Path, seed: int) -> None:
    """Take the lock, mark it while holding it, and die or return; the tenth owner creates the checkpoint."""
    checkpoint_lock.POLL_INTERVAL_S = 0.02
    chance = random.Random(seed)  # noqa: S311  reproducible, not secret
    with lock_checkpoint(checkpoint, LockOwner.from_attempt(record_of()), lambda _: None) as has_lock:
        if not has_lock:
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
    """Twenty workers wait for a dead owner, and die or return while holding the lock: never two hold it at once."""
    claim_of(
        tmp_path / "x", dataclasses.replace(LockOwner.from_attempt(record_of()), process=f"{identity(os.getpid())}9")
    )
    crowd = [start_process(contend, tmp_path / "x", 100 * seed + number) for number in range(CONTENDERS)]
    for process in crowd:
        process.join(TIMEOUT_S)
        assert process.exitcode in (0, -signal.SIGKILL)
    turns = [line.split(maxsplit=1) for line in (tmp_path / "log").read_text(encoding="utf-8").splitlines()]
    assert len({pid for pid, _ in turns}) == len(turns) == TURNS
    assert {held_by for _, held_by in turns} == {"None"}
    assert sorted(item.name for item in tmp_path.iterdir()) == ["log", "x"]


def test_a_released_claim_is_free(tmp_path: Path) -> None:
    """If the work failed but its process is still alive, the next worker need not wait."""
    with (
        pytest.raises(RuntimeError, match="failed"),
        lock_checkpoint(tmp_path / "x", LockOwner.from_attempt(record_of()), pytest.fail),
    ):
        raise RuntimeError("failed")
    with lock_checkpoint(
        tmp_path / "x", dataclasses.replace(LockOwner.from_attempt(record_of()), process=""), pytest.fail
    ) as has_lock:
        assert has_lock


def test_a_local_owner_on_another_host_is_assumed_alive(tmp_path: Path) -> None:
    """The waiting worker names an owner on another host, and continues when the user removes its claim."""
    folder = claim_of(tmp_path / "x", elsewhere(LockOwner.from_attempt(record_of()), "other-host")).parent
    messages: list[str] = []
    acquired = threading.Event()

    def wait() -> None:
        with lock_checkpoint(tmp_path / "x", LockOwner.from_attempt(record_of()), messages.append):
            acquired.set()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    wait_until(lambda: messages)
    assert messages[0].startswith(f"waiting for other-host (process {os.getpid()}), which has been creating this ")
    assert messages[0].endswith(f"if that host is gone, remove {folder}")
    assert not acquired.is_set()
    (folder / "1" / "owner.json").unlink()
    (folder / "1").rmdir()
    folder.rmdir()
    assert acquired.wait(TIMEOUT_S)
    waiting.join(TIMEOUT_S)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"process": "HOST BOOT 999999999 1"}, "there is no such process"),
        ({"process": "HOST BOOT PID 1"}, "the process with that id started at another time"),
        ({"process": "HOST other-boot PID 1"}, "the host was rebooted"),
        ({"process": "SAME"}, "it is this process"),
        ({"process": "other b 1 1", "launcher": Launcher.SLURM, "restart": 1}, "it is this job before it was requeued"),
    ],
)
def test_a_dead_owner_s_claim_is_superseded_at_once(changes: dict[str, object], reason: str, tmp_path: Path) -> None:
    """If the owner is known to be gone, the next worker does not wait."""
    mine = identity(os.getpid()) or ""
    host, boot, pid, _ = mine.split()
    text = str(changes["process"])
    for placeholder, value in (("SAME", mine), ("HOST", host), ("BOOT", boot), ("PID", pid)):
        text = text.replace(placeholder, value)
    claim_of(tmp_path / "x", dataclasses.replace(LockOwner.from_attempt(record_of()), **{**changes, "process": text}))
    me = LockOwner.from_attempt(record_of(launcher=Launcher.SLURM, restart=2))
    with lock_checkpoint(tmp_path / "x", me, lambda message: pytest.fail(f"{reason}, but: {message}")) as has_lock:
        assert has_lock


def test_a_claim_that_cannot_be_parsed_has_no_owner(tmp_path: Path) -> None:
    """A damaged owner file does not block the lock for ever."""
    (claim_of(tmp_path / "x", LockOwner.from_attempt(record_of())) / "owner.json").write_text(
        '{"unit":', encoding="utf-8"
    )
    with lock_checkpoint(tmp_path / "x", LockOwner.from_attempt(record_of()), pytest.fail) as has_lock:
        assert has_lock


def test_leftovers_of_a_kill_after_the_commit_are_removed(tmp_path: Path) -> None:
    """Claim and blocks of an existing checkpoint are removed by the next worker."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x.blocks").mkdir()
    (tmp_path / "x.blocks" / "layer-1-of-4.safetensors").write_bytes(b"")
    claim_of(tmp_path / "x", elsewhere(LockOwner.from_attempt(record_of()), "other-host"))
    worker(tmp_path, 1, 0.0)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["attempts", "x"]
    assert list((tmp_path / "x").iterdir()) == []
