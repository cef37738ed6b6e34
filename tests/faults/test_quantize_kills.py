"""A real quantization killed at random, again and again: what has been committed is not made again, and no bit differs.

Needs torch and llmcompressor, and no staged model: a random Llama of ten small layers is enough to be killed in.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from hpcq.catalog.schemes import find_scheme
from hpcq.core.attempts import Attempt, AttemptRecord, utc_now, read_attempts
from hpcq.core.processes import identity
from hpcq.core.work import Calibration, Model, QuantizeWork, Variant
from hpcq.quantize.worker import digest_of_checkpoint, quantize
from tests.forkserver import start_process
from tests.tiny_llama import write_base, write_calibration

pytest.importorskip("llmcompressor")

LAYERS = 10
KILLS = 10
SEED = 7
PATIENCE_S = 120.0
UNIT = "quantize.tiny"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Calibration]:
    """The model, and a calibration text."""
    folder = tmp_path_factory.mktemp("base")
    model = Model(id="tests/tiny-llama", path=str(write_base(folder / "tiny", layers=LAYERS, hidden_size=64)))
    return model, write_calibration(folder / "text.jsonl")


def run(work: QuantizeWork, attempts: Path, number: int) -> None:
    """One attempt, as a job makes it, with its output in a log."""
    log = os.open(attempts.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    record = AttemptRecord(
        unit=UNIT,
        attempt=number,
        job_id=str(number),
        node="here",
        pid=os.getpid(),
        start=utc_now(),
        process=identity(os.getpid()) or "",
    )
    quantize(work, Attempt(attempts, record))


def committed(blocks: Path) -> int:
    """Blocks that a kill cannot take away."""
    return len(list(blocks.glob("*.safetensors")))


def killed_at_random(process: BaseProcess, blocks: Path, begun: Path, instant: tuple[int, float]) -> bool:
    """SIGKILL a quantization so many new blocks and seconds after `begun` is there; False if it was done before."""
    wanted = committed(blocks) + instant[0]
    deadline = time.monotonic() + PATIENCE_S
    while not (begun.exists() and committed(blocks) >= wanted) and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.join(instant[1])
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def counts(folder: Path) -> dict[int, tuple[int, int]]:
    """Blocks restored and committed, by attempt."""
    return {
        record.attempt: (record.facts.get("blocks_restored", 0), record.facts.get("blocks_committed", 0))
        for record in read_attempts(folder).get(UNIT, [])
    }


@pytest.mark.parametrize(("scheme", "passes"), [("gptq-w8a16", 1), ("smoothquant-w8a8", 2)])
def test_ten_kills_change_no_bit(scheme: str, passes: int, base: tuple[Model, Calibration], tmp_path: Path) -> None:
    """Killed ten times at random, and taken up again, a quantization gives the digest of an undisturbed one."""
    found = find_scheme(scheme)
    assert found is not None
    variant = Variant(model=base[0], scheme=found, calibration=base[1])

    def work_at(checkpoint: Path) -> QuantizeWork:
        return QuantizeWork(variant=variant, checkpoint_path=str(checkpoint), device="cpu")

    calm = start_process(run, work_at(tmp_path / "calm"), tmp_path / "attempts-of-calm", 1)
    calm.join(PATIENCE_S)
    total = passes * (LAYERS + 1)
    assert calm.exitcode == 0
    assert counts(tmp_path / "attempts-of-calm") == {1: (0, total)}
    digest = digest_of_checkpoint(tmp_path / "calm")
    seconds = json.loads((tmp_path / "calm" / "hpcq.json").read_text(encoding="utf-8"))["seconds"]
    block_s = seconds["calibrating"] / total

    chance = random.Random(SEED)  # noqa: S311  reproducible, not secret
    checkpoint, blocks, attempts = tmp_path / "killed", tmp_path / "killed.blocks", tmp_path / "attempts"
    there: list[int] = []
    kills = 0
    while kills < KILLS and len(there) < 3 * KILLS:
        there.append(committed(blocks))
        number = len(there)
        process = start_process(run, work_at(checkpoint), attempts, number)
        made = chance.choice((0, 1, 1))
        instant = made, chance.uniform(0, block_s if made else seconds["loading"])
        if killed_at_random(process, blocks, attempts / f"{UNIT}.{number}.json", instant):
            kills += 1
        else:  # it was done before the kill: once more from the beginning
            assert digest_of_checkpoint(checkpoint) == digest
            shutil.rmtree(checkpoint)
    there.append(committed(blocks))
    last = start_process(run, work_at(checkpoint), attempts, len(there))
    last.join(PATIENCE_S)

    assert (kills, last.exitcode) == (KILLS, 0)
    assert digest_of_checkpoint(checkpoint) == digest
    counted = counts(attempts)
    for number, (restored, made) in counted.items():
        before = there[number - 1]
        assert restored == before if made else restored <= before
    assert counted[len(there)] == (there[-1], total - there[-1])
    assert not blocks.exists()
