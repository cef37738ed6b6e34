"""Models whose files were repaired after their units had failed: they are replaced in the same run, and never mixed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcq.core.completion_marker import write_completion_marker
from hpcq.core.errors import ManifestError, UserInputError
from hpcq.core.work_records import UnitKind
from hpcq.run.load import LoadedRun, load_manifest, load_run
from hpcq.run.plan_change import check_plan_change, check_same_plan
from hpcq.run.submit import plan_run
from hpcq.run.write_run import write_run
from tests.checkpoint_files import write_checkpoint

MANIFEST = """
[run]
name = "r"
[[models]]
path = "good"
[[models]]
path = "broken"
[schemes]
use = ["bf16"]
[tasks]
use = ["arc_challenge"]
data = "packages"
"""


@pytest.fixture
def submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedRun:
    """A run with two models that was submitted, in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("m.toml").write_text(MANIFEST)
    write_checkpoint(Path("good"))
    write_checkpoint(Path("broken"), rope_theta=1)
    loaded = load_manifest(Path("m.toml"))
    write_run(loaded)
    return loaded


def repair(tokenizer: str = "b") -> LoadedRun:
    """Write another tokenizer to the folder of the model, and load the manifest again."""
    content = {"version": "1.0", "model": {"vocab": {tokenizer: 0}}}
    (Path("broken") / "tokenizer.json").write_text(json.dumps(content))
    return load_manifest(Path("m.toml"))


def complete(loaded: LoadedRun, model: str) -> None:
    """Mark the evaluation of a model as complete."""
    for unit in loaded.plan.units:
        if unit.kind is UnitKind.EVALUATE and f".{model}--" in unit.id and unit.address:
            write_completion_marker(loaded.layout.unit_segments(unit.id), address=unit.address, requests=1, attempt=1)


def test_a_repaired_model_is_a_new_one_in_the_same_run(submitted: LoadedRun) -> None:
    """Submit and plan accept it with a note (only another run.name worked); results of the other model stay."""
    complete(submitted, "good")
    repaired = repair()
    note = check_plan_change(repaired)
    assert note == (
        "broken: the files have changed since run 'r' was submitted, and no evaluation of the earlier files is"
        " complete. The new files replace the earlier model in this run."
    )
    assert note in plan_run(repaired).document["notes"]
    with pytest.raises(UserInputError, match=r"models\.1\.digest was .* Submit the manifest again"):
        check_same_plan(repaired)
    with pytest.raises(ManifestError, match="or submit the manifest of which this is the lock file"):
        load_run("r")
    write_run(repaired)
    assert check_plan_change(repaired) is None
    states = {unit.id.split(".")[1].split("--")[0]: str(unit.state) for unit in plan_run(repaired).status.units}
    assert states == {"good": "done", "broken": "waiting", "r": "waiting"}


def test_a_model_with_complete_evaluations_is_not_replaced(submitted: LoadedRun) -> None:
    """The results of the earlier files would be lost: the message names the key, and another run."""
    complete(submitted, "broken")
    repaired = repair()
    with pytest.raises(UserInputError, match=r"models\.1\.digest was .* -O run\.name=r-2"):
        check_plan_change(repaired)
    assert "run.name=r-2" in plan_run(repaired).document["notes"][-1]


@pytest.mark.usefixtures("submitted")
def test_a_repair_together_with_other_settings_is_refused() -> None:
    """Only the files of models may have changed."""
    repair()
    with pytest.raises(UserInputError, match=r"models\.1\.digest was .*tasks\.limit was unset and is 3.* -O run\.name"):
        check_plan_change(load_manifest(Path("m.toml"), ["tasks.limit=3"]))
