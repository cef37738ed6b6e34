"""Display of staging: on a terminal, in a pipe, and the line of each item."""

from __future__ import annotations

import os
import re
import sys
import time

import pytest

from hpcq.cli import stage_display
from hpcq.cli.stage_display import format_bytes, item_line
from hpcq.stage.progress import Item, ItemKind, Origin, Phase, StagedItem, StageProgress
from tests.terminal import run_on_terminal

MODEL = Item(kind=ItemKind.MODEL, name="Qwen/Qwen3-8B", commit="abc1234" + "0" * 33)
GB = 10**9

STAGE_ONE_MODEL = """
from hpcq.cli.stage_display import stage_display
from tests.unit.cli.test_stage_display import GB, MODEL, Origin, Phase, StagedItem, StageProgress
with stage_display() as display:
    for done in range(0, 17):
        display.progress(StageProgress(item=MODEL, phase=Phase.DOWNLOADING, done=done * GB, total=16 * GB))
    display.note(MODEL, "Qwen/Qwen3-8B@main: the connection was lost; retry 1 in 2 s")
    display.progress(StageProgress(item=MODEL, phase=Phase.VERIFYING, done=0, total=16 * GB))
    display.finished(StagedItem(item=MODEL, origin=Origin.DOWNLOADED, size=16 * GB, downloaded=16 * GB, seconds=182))
"""


@pytest.mark.parametrize(
    ("staged", "line"),
    [
        (
            StagedItem(
                item=MODEL, origin=Origin.DOWNLOADED, size=16_400_000_000, downloaded=16_380_000_000, seconds=182
            ),
            "model Qwen/Qwen3-8B  commit abc1234  16.4 GB  downloaded in 3 min 02 s (90 MB/s)",
        ),
        (
            StagedItem(item=MODEL, origin=Origin.STAGED, size=999_700, seconds=1),
            "model Qwen/Qwen3-8B  commit abc1234  1 MB  already staged",
        ),
        (
            StagedItem(item=MODEL, origin=Origin.ADOPTED, size=120, seconds=3, note="not compared with the hub"),
            "model Qwen/Qwen3-8B  commit abc1234  120 B  verified in the cache in 3 s  (not compared with the hub)",
        ),
        (
            StagedItem(
                item=Item(kind=ItemKind.DATASET, name="cais/mmlu", detail="anatomy"),
                origin=Origin.PREPARED,
                size=1_230_000,
                seconds=70,
            ),
            "data set cais/mmlu  anatomy  1.23 MB  prepared in 1 min 10 s",
        ),
    ],
)
def test_each_item_has_one_line(staged: StagedItem, line: str) -> None:
    """The line has kind, name, commit, size, origin, time and rate, if they are known."""
    assert item_line(staged) == line


def test_bytes_have_three_digits() -> None:
    """Decimal prefixes, as disks and file lists use them."""
    shown = [format_bytes(size) for size in (0, 999, 1000, 15_200, 999_900, 163_800_000, 2.5e13)]
    assert shown == ["0 B", "999 B", "1 kB", "15.2 kB", "1 MB", "164 MB", "25 TB"]


def test_in_a_pipe_lines_are_printed_every_few_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line has the phase, the bytes, the rate and the time left; retries and results have lines of their own."""
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    with stage_display.stage_display() as display:
        for second in range(13):
            now_s = float(second)
            progress = StageProgress(
                item=MODEL, phase=Phase.DOWNLOADING, done=4 * GB + second * GB // 10, total=16 * GB
            )
            display.progress(progress)
        display.note(MODEL, "waiting")
        display.finished(StagedItem(item=MODEL, origin=Origin.STAGED, size=GB))
    output, lines = capsys.readouterr()
    assert output == ""
    assert lines.splitlines() == [
        "model Qwen/Qwen3-8B  commit abc1234: downloading 4.5 GB of 16 GB, 100 MB/s, about 1 min 55 s left",
        "model Qwen/Qwen3-8B  commit abc1234: downloading 5 GB of 16 GB, 100 MB/s, about 1 min 50 s left",
        "model Qwen/Qwen3-8B: waiting",
        "model Qwen/Qwen3-8B  commit abc1234  1 GB  already staged",
    ]


def test_on_a_terminal_bars_are_drawn() -> None:
    """The bars disappear at the end; retries and the line of the item remain."""
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "150"}
    code, text = run_on_terminal([sys.executable, "-c", STAGE_ONE_MODEL], ["stderr"], env=environment, columns=150)
    assert code == 0
    assert "━" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "commit abc1234  downloading" in plain
    assert "commit abc1234  verifying" in plain
    assert "Qwen/Qwen3-8B@main: the connection was lost; retry 1 in 2 s" in plain
    assert "model Qwen/Qwen3-8B  commit abc1234  16 GB  downloaded in 3 min 02 s (87.9 MB/s)" in plain
