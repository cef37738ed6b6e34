"""A real quantization, killed repeatedly at random: committed blocks are not computed again, and no bit differs.

Requires torch and llmcompressor. The model is a small random Llama with ten layers.
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
from hpcq.core.attempts import Attempt, AttemptRecord, read_attempts, utc_now
from hpcq.core.processes import identity
from hpcq.core.work import Calibration, Model, QuantizeWork, Variant
from hpcq.quantize.worker import digest_of_checkpoint, quantize
from tests.forkserver import start_process
from tests.tiny_llama import write_base, write_calibration

pytest.importorskip("llmcompressor")

LAYERS = 10
KILLS = 10
SEED = 7
TIMEOUT_S = 900.0
UNIT = "quantize.tiny"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Calibration]:
    """A model and a calibration text."""
    folder = tmp_path_factory.mktemp("base")
    model = Model(id="tests/tiny-llama", path=str(write_base(folder / "tiny", layers=LAYERS, hidden_size=64)))
    return model, write_calibration(folder / "text.jsonl")


def run(work: QuantizeWork, attempts: Path, number: int) -> None:
    """Run one attempt as a job does, with its output in a log."""
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


def count_blocks(blocks: Path) -> int:
    """Return the number of committed blocks."""
    return len(list(blocks.glob("*.safetensors")))


def kill_after(process: BaseProcess, blocks: Path, record: Path, *, new_blocks: int, delay_s: float) -> bool:
    """Kill a quantization; return False if it was done before.

    Args:
        process: Process of the attempt.
        blocks: Folder of the blocks.
        record: The attempt's record. The kill happens after it exists and `new_blocks` have been committed.
        new_blocks: Number of blocks to wait for.
        delay_s: Further seconds to wait.
    """
    wanted = count_blocks(blocks) + new_blocks
    deadline_s = time.monotonic() + TIMEOUT_S
    while (
        not (record.exists() and count_blocks(blocks) >= wanted)
        and process.is_alive()
        and time.monotonic() < deadline_s
    ):
        time.sleep(0.005)
    process.join(delay_s)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def blocks_by_attempt(folder: Path) -> dict[int, tuple[int, int]]:
    """Return the number of blocks that each attempt restored and committed."""
    return {
        record.attempt: (record.facts.get("blocks_restored", 0), record.facts.get("blocks_committed", 0))
        for record in read_attempts(folder).get(UNIT, [])
    }


@pytest.mark.parametrize(("scheme", "passes"), [("gptq-w8a16", 1), ("smoothquant-w8a8", 2)])
def test_ten_kills_change_no_bit(scheme: str, passes: int, base: tuple[Model, Calibration], tmp_path: Path) -> None:
    """A quantization that is killed ten times at random and resumed has the digest of one that is never killed."""
    scheme_row = find_scheme(scheme)
    assert scheme_row is not None
    variant = Variant(model=base[0], scheme=scheme_row, calibration=base[1])

    def work_at(checkpoint: Path) -> QuantizeWork:
        return QuantizeWork(variant=variant, checkpoint_path=str(checkpoint), device="cpu")

    reference = start_process(run, work_at(tmp_path / "reference"), tmp_path / "reference-attempts", 1)
    reference.join(TIMEOUT_S)
    total = passes * (LAYERS + 1)
    assert reference.exitcode == 0
    assert blocks_by_attempt(tmp_path / "reference-attempts") == {1: (0, total)}
    digest = digest_of_checkpoint(tmp_path / "reference")
    seconds = json.loads((tmp_path / "reference" / "hpcq.json").read_text(encoding="utf-8"))["seconds"]
    block_s = seconds["calibrating"] / total

    random_source = random.Random(SEED)  # noqa: S311  reproducible, not secret
    checkpoint, blocks, attempts = tmp_path / "killed", tmp_path / "killed.blocks", tmp_path / "attempts"
    blocks_at_start: list[int] = []
    kills = 0
    while kills < KILLS and len(blocks_at_start) < 3 * KILLS:
        blocks_at_start.append(count_blocks(blocks))
        number = len(blocks_at_start)
        process = start_process(run, work_at(checkpoint), attempts, number)
        new_blocks = random_source.choice((0, 1, 1))
        delay_s = random_source.uniform(0, block_s if new_blocks else seconds["loading"])
        record = attempts / f"{UNIT}.{number}.json"
        if kill_after(process, blocks, record, new_blocks=new_blocks, delay_s=delay_s):
            kills += 1
        else:  # done before the kill: quantize again from the start
            assert digest_of_checkpoint(checkpoint) == digest
            shutil.rmtree(checkpoint)
    blocks_at_start.append(count_blocks(blocks))
    last = start_process(run, work_at(checkpoint), attempts, len(blocks_at_start))
    last.join(TIMEOUT_S)

    assert (kills, last.exitcode) == (KILLS, 0)
    assert digest_of_checkpoint(checkpoint) == digest
    counts = blocks_by_attempt(attempts)
    for number, (restored, new) in counts.items():
        before = blocks_at_start[number - 1]
        assert restored == before if new else restored <= before
    assert counts[len(blocks_at_start)] == (blocks_at_start[-1], total - blocks_at_start[-1])
    assert not blocks.exists()
