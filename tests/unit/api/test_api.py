"""Public Python API with a synthetic run: overrides, records, errors, and a process that stays as it was."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

import hpcq
from hpcq.core.errors import ManifestError, RunIncompleteError, UserInputError
from tests.command_line import REHEARSAL

PROFILE = """
name = "one"
scheduler = "local"
[gpu_classes.small]
gpu = "H100-80"
gpus_per_node = 1
cpus_per_node = 8
memory_gib = 64
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder that contains the manifest of a synthetic run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.toml").write_text(REHEARSAL, encoding="utf-8")
    return tmp_path


def process_state() -> dict[str, object]:
    """Return what a caller may rely on: umask, folder, variables, signal handlers, threads."""
    umask = os.umask(0)
    os.umask(umask)
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    return {
        "umask": umask,
        "cwd": Path.cwd(),
        "environ": dict(os.environ),
        "handlers": handlers,
        "threads": {thread.name for thread in threading.enumerate()},
    }


@pytest.mark.timeout(240)
def test_a_run_leaves_the_callers_process_as_it_was(folder: Path) -> None:
    """Plan, submit, status, merge, logs and cancel change no umask, folder, variable, handler or thread."""
    before = process_state()
    run = hpcq.load(folder / "m.toml", **{"tasks.limit": 2})
    assert run.status().state == "waiting"
    assert run.submit(wait=True).status.state == "done"
    assert run.merge()["missing"] == 0
    assert run.logs("merge")
    assert run.cancel() == []
    assert process_state() == before
    modes = {path.stat().st_mode & 0o077 for path in (folder / "runs").rglob("*.json")}
    assert modes == {0}
    assert [found.name for found in hpcq.runs()] == ["rehearsal"]
    assert repr(hpcq.runs()[0]) == "hpcq.load('runs/rehearsal')"
    with pytest.raises(RunIncompleteError, match="synthetic"):
        run.scores()
    responses = run.responses("gsm8k", variant="bf16")
    assert len(responses) == 2
    assert responses.to_pandas().columns.tolist()[:3] == ["variant", "task", "doc_id"]
    with pytest.raises(UserInputError, match="no responses to task 'gsm8'; tasks: arc_challenge, gsm8k"):
        run.responses("gsm8")
    with pytest.raises(UserInputError, match="no variant 'fp16'"):
        run.responses(variant="fp16")


def test_overrides_are_python_values(folder: Path) -> None:
    """Strings, numbers, booleans, lists, paths and tables arrive in the manifest as they are."""
    values = {
        "run.name": "b-1",
        "tasks.limit": 3,
        "schemes.use": ["bf16"],
        "evaluate.prefix_sharing": False,
        "paths.runs": folder / "elsewhere",
        "evaluate.synthetic": {"request_seconds": 0.5},
    }
    manifest = hpcq.load("m.toml", **values).load().resolved.manifest
    assert (manifest.run.name, manifest.tasks.limit, manifest.evaluate.prefix_sharing) == ("b-1", 3, False)
    assert list(manifest.schemes.use) == ["bf16"]
    assert hpcq.load("m.toml", **values).folder == folder / "elsewhere" / "b-1"


def test_a_value_without_a_toml_form_is_refused() -> None:
    """The message names the key and the value."""
    with pytest.raises(UserInputError, match=r"tasks\.limit = None: use a string, a number"):
        hpcq.load("m.toml", **{"tasks.limit": None})


def test_an_expensive_run_needs_confirmation() -> None:
    """Above plan.confirm_above_gpu_hours nothing is submitted unless the caller's function says so."""
    asked = []

    def refuse(hours: Mapping[str, float], limit: float) -> bool:
        asked.append((list(hours), limit))
        return False

    Path("one.toml").write_text(PROFILE, encoding="utf-8")
    settings = {"plan.confirm_above_gpu_hours": 1e-6, "evaluate.synthetic": {"request_seconds": 0.04}}
    run = hpcq.load("m.toml", **settings, **{"cluster.profile": "one.toml"})
    with pytest.raises(UserInputError, match=r"more than plan\.confirm_above_gpu_hours = 1e-06"):
        run.submit(confirm=refuse)
    assert asked == [(["small"], 1e-6)]
    assert not Path("runs").exists()


def test_results_of_other_settings_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest that was changed after the submission does not return the results of the old one."""
    hpcq.load("m.toml", **{"tasks.limit": 1}).submit()
    changed = hpcq.load("m.toml", **{"tasks.limit": 2})
    for read in (changed.status, changed.responses, changed.scores, changed.report, changed.merge, changed.logs):
        with pytest.raises(UserInputError, match=r"other settings \(tasks\.limit was 1 and is 2\)"):
            read()
    assert any("other settings" in note for note in changed.plan().document["notes"])
    with pytest.raises(ManifestError, match="unknown key"):
        hpcq.load("rehearsal", **{"nonsense.key": "x"}).status()
    run, found = hpcq.load("m.toml", **{"tasks.limit": 1}), hpcq.find("rehearsal")
    monkeypatch.chdir(folder.parent)
    assert found.status().state == "done"
    with pytest.raises(UserInputError, match="working directory has changed"):
        run.cancel()


def test_the_command_of_a_user_names_units(folder: Path) -> None:
    """An empty name selects no unit, in `logs` as in `cancel`."""
    run = hpcq.load(folder / "m.toml", **{"tasks.limit": 1})
    run.submit()
    for select in (run.logs, run.cancel):
        with pytest.raises(UserInputError):
            select("")


def test_new_parent_folders_are_not_writable_for_others(folder: Path) -> None:
    """With umask 000, another user could otherwise replace the run's folder."""
    before = os.umask(0)
    try:
        run = hpcq.load("m.toml", **{"tasks.limit": 1, "paths.runs": "a/b", "paths.logs": "c/d"})
        run.submit()
    finally:
        os.umask(before)
    for parent in ("a", "a/b", "c", "c/d"):
        assert (folder / parent).stat().st_mode & 0o022 == 0, parent


def test_an_unknown_run_is_refused() -> None:
    """The message names the folder and the next command."""
    with pytest.raises(UserInputError, match=r"nothing: no run in runs/nothing\."):
        hpcq.find("nothing")
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        hpcq.lod  # noqa: B018 (the access is the test)
