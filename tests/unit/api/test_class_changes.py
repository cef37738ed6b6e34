"""GPU class of a variant that has started: kept by `resume`, and a change is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcq.core.attempts import Attempt, AttemptRecord
from hpcq.run.load import LoadedRun, load_manifest, load_run
from hpcq.run.submit import plan_run
from hpcq.run.write_run import write_run

MANIFEST = """
[run]
name = "r"
[cluster]
profile = "both.toml"
[[models]]
id = "meta-llama/Llama-3.1-8B"
[schemes]
use = ["bf16"]
[tasks]
use = ["arc_challenge"]
limit = 2
[evaluate]
backend = "synthetic"
"""
CLASSES = {
    name: f'[gpu_classes.{name}]\ngpu = "A100-80"\ngpus_per_node = 4\ncpus_per_node = 8\nmemory_gib = 100\n'
    for name in ("first", "second")
}


@pytest.fixture(autouse=True)
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedRun:
    """A run whose evaluation was attempted on the class 'second'."""
    monkeypatch.chdir(tmp_path)
    Path("m.toml").write_text(MANIFEST)
    for name, classes in (("both", ("first", "second")), ("one", ("first",))):
        text = f'name = "{name}"\nscheduler = "local"\n' + "".join(CLASSES[each] for each in classes)
        Path(f"{name}.toml").write_text(text)
    loaded = load_manifest(Path("m.toml"))
    write_run(loaded)
    assert class_of(loaded) == "first"
    record = AttemptRecord(
        unit=loaded.plan.units[0].id,
        attempt=1,
        job_id="1",
        node="n",
        pid=1,
        start="2026-01-01T00:00:00+00:00",
        facts={"planned": {"gpu_class": "second"}},
    )
    Attempt(loaded.layout.attempts, record)
    return loaded


def class_of(loaded: LoadedRun) -> str:
    """Return the class of the evaluation."""
    return loaded.plan.units[0].shape.gpu_class


def test_a_started_variant_stays_on_its_class_without_a_note() -> None:
    """The first class is as good and comes first, but the attempt ran on the second."""
    resumed = load_run("r")
    assert class_of(resumed) == "second"
    assert not [note for note in plan_run(resumed).document["notes"] if "class" in note]


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("plan.keep_gpu_class=false", "as plan.keep_gpu_class = false permits"),
        ("cluster.profile=one.toml", "because profile 'one' has no class second"),
    ],
)
def test_a_move_is_said(option: str, reason: str) -> None:
    """The user may tell the run to move a variant; `plan` and `resume` name both classes and the reason."""
    moved = load_run("r", [option])
    assert class_of(moved) == "first"
    [note] = [note for note in plan_run(moved).document["notes"] if "class" in note]
    assert note == (
        f"{moved.plan.units[0].variant_id}: attempts ran on class second, the next ones run on class first, {reason}."
        " Kernels and rounding differ between classes."
    )
