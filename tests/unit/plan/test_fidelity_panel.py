"""Fidelity panel in plans: who reads it, how often, and what does not change with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcq.cli import main
from hpcq.core.errors import ManifestError
from hpcq.core.work_records import PANEL_TASK, EvaluateWork, FidelityPanel
from hpcq.manifest import load, resolve
from hpcq.plan.build_units import stage_work
from hpcq.plan.plan_json import plan_document
from hpcq.plan.planner import make_plan
from hpcq.plan.units import Plan

MANIFEST = """
[run]
name = "r"
[[models]]
id = "HuggingFaceTB/SmolLM2-135M-Instruct"
source = "packages"
[schemes]
use = ["bf16", "gptq-w4a16-g64"]
[calibration]
dataset = "text.jsonl"
samples = 1
sequence_length = 64
[tasks]
use = ["arc_challenge"]
data = "packages"
"""
FIDELITY = 'fidelity={dataset = "text.jsonl", tokens = 100, window = 64}'


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Create a manifest and a text of 20 passages, each long enough for a window."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPCQ_CACHE", str(tmp_path / "cache"))
    Path("m.toml").write_text(MANIFEST, encoding="utf-8")
    lines = (json.dumps({"text": f"{number:03d} " + "word " * 100}) + "\n" for number in range(20))
    Path("text.jsonl").write_text("".join(lines), encoding="utf-8")


def plan(*options: str) -> Plan:
    """Return the plan of the manifest with `options`."""
    return make_plan(resolve(load(Path("m.toml"), options)))


def evaluations(planned: Plan) -> dict[str, EvaluateWork]:
    """Return the evaluations by the scheme's name."""
    works = [unit.work for unit in planned.units if isinstance(unit.work, EvaluateWork)]
    return {work.variant.scheme.name: work for work in works}


def panel_of(work: EvaluateWork) -> FidelityPanel:
    """Return the panel that a variant reads."""
    [found] = [task.panel for task in work.tasks if task.name == PANEL_TASK]
    assert found
    return found


def test_the_baseline_reads_the_panel_twice() -> None:
    """All variants read the same windows; the unquantized one reads them again, for the noise floor."""
    found = evaluations(plan(FIDELITY))
    base, quantized = panel_of(found["bf16"]), panel_of(found["gptq-w4a16-g64"])
    assert (base.repeats, quantized.repeats) == (2, 1)
    assert (base.windows, base.window_tokens, base.digest, base.path) == (
        quantized.windows,
        quantized.window_tokens,
        quantized.digest,
        quantized.path,
    )
    assert (base.windows, base.dataset, base.reserved) == (2, "text.jsonl", found["gptq-w4a16-g64"].variant.calibration)


def test_other_responses_stay_valid() -> None:
    """Adding the panel adds a task: benchmarks and checkpoints keep their addresses, only the whole changes."""
    before, after = evaluations(plan()), evaluations(plan(FIDELITY))
    for name, work in before.items():
        assert after[name].variant.address == work.variant.address
        assert after[name].task_address(after[name].tasks[0]) == work.task_address(work.tasks[0])
        assert after[name].address != work.address


def test_a_plan_lists_the_panel_and_its_tokens() -> None:
    """`plan --json` has the task, and exactly its tokens in addition to those of the benchmarks."""
    documents = [plan_document(plan(*options), (), {}) for options in ((), (FIDELITY,))]
    for before, after in zip(*(document["units"] for document in documents), strict=True):
        if before["tasks"]:
            assert after["tasks"] == ["arc_challenge", PANEL_TASK]
            added = 2 * 64 * (2 if before["scheme"] == "bf16" else 1)
            assert after["tokens"]["requested"] - before["tokens"]["requested"] == added
    assert [one["task"] for one in documents[1]["detectable"]] == ["arc_challenge"]
    assert documents[1]["totals"]["tokens"]["unknown_tasks"] == []
    panel = {"dataset": "text.jsonl", "windows": 2, "window_tokens": 64, "leaves_out_calibration": True}
    assert [document["fidelity_panel"] for document in documents] == [None, panel]


def test_plan_prints_the_panel(capsys: pytest.CaptureFixture[str]) -> None:
    """`hpcq plan` has a line with its size, its text, and what is left out."""
    assert main(["plan", "m.toml", "-O", FIDELITY]) == 0
    line = "fidelity panel: 2 windows of 64 tokens from text.jsonl, without what the calibration may read;"
    assert line in capsys.readouterr().out


def test_a_text_that_the_calibration_reads_is_too_short() -> None:
    """The manifest is refused before anything runs, with the number of tokens that the text is enough for."""
    message = r": fidelity\.dataset: .*text\.jsonl: has text for 13 windows of 64 tokens besides what the"
    with pytest.raises(ManifestError, match=message):
        load(Path("m.toml"), ["calibration.samples=8", 'fidelity={dataset = "text.jsonl", tokens = 1200, window = 64}'])


def test_a_rehearsal_has_a_panel_without_its_text() -> None:
    """A rehearsal reads no text, and asks for as many windows."""
    planned = plan("evaluate.backend=synthetic", 'fidelity={dataset = "boolq-passages"}')
    assert panel_of(evaluations(planned)["bf16"]).windows == 98


def test_a_text_from_a_mirror_is_staged_like_a_calibration_text() -> None:
    """Its content identifies it before it is staged, the stage unit's work has it, and the lock has its revision."""
    folder = Path("mirror/datasets/org/text")
    folder.mkdir(parents=True)
    Path("text.jsonl").rename(folder / "test.jsonl")
    Path("c.jsonl").write_text('{"text": "Calibration. ' + "word " * 100 + '"}\n', encoding="utf-8")
    options = ["data.mirror=mirror", "calibration.dataset=c.jsonl", 'fidelity={dataset = "org/text", window = 64}']
    resolved = resolve(load(Path("m.toml"), options))
    panel = stage_work(resolved, ()).panel
    assert panel
    assert panel.digest is None
    assert str(panel.source).startswith("org/text@")
    assert str(panel.source).endswith("/default/test/text")
    assert panel.path
    assert (panel.column, Path(panel.path).is_file()) == ("text", False)


def test_a_wrong_key_names_the_table() -> None:
    """A line without the column is reported for the panel, not for the calibration."""
    Path("other.jsonl").write_text('{"body": "text"}\n', encoding="utf-8")
    with pytest.raises(
        ManifestError,
        match=r"fidelity\.dataset: .*other\.jsonl:1: has no 'text', but 'body': correct it, or"
        r" set fidelity\.column\.",
    ):
        load(Path("m.toml"), ['fidelity={dataset = "other.jsonl", tokens = 64, window = 64}'])
