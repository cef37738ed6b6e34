"""Changes of a manifest that was submitted: what is growth of the run, what is refused, and kills in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import hpcq
from hpcq.core.errors import SetupError, UserInputError
from hpcq.run.load import LoadedRun, load_manifest, load_run
from hpcq.run.plan_change import check_plan_change
from hpcq.run.submit import plan_run
from hpcq.run.write_run import check_unchanged_run, write_run

MANIFEST = """
[run]
name = "r"
[[models]]
id = "meta-llama/Llama-3.1-8B"
revision = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
[schemes]
use = ["bf16"]
[tasks]
use = ["arc_challenge"]
limit = 2
[evaluate]
backend = "synthetic"
"""
LARGER = MANIFEST.replace('"bf16"', '"bf16", "fp16"')
FILES = ("manifest.lock.toml", "merge.json", "plan.json")


def load(text: str = MANIFEST) -> LoadedRun:
    """Write the manifest and load it."""
    Path("m.toml").write_text(text)
    return load_manifest(Path("m.toml"))


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a run that was submitted, in the working directory."""
    monkeypatch.chdir(tmp_path)
    loaded = load()
    write_run(loaded)
    return loaded.layout.folder


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ('"bf16"', '"bf16", "fp16"', "adds Llama-3.1-8B fp16"),
        ('"arc_challenge"', '"arc_challenge", "gsm8k"', "adds gsm8k"),
        ("[schemes]", '[[models]]\nid = "google/gemma-2b"\n[schemes]', "adds gemma-2b bf16"),
        ("[[models]]", '[[models]]\nid = "google/gemma-2b"\n[[models]]', "adds gemma-2b bf16"),
        ('"bf16"', '"fp16"', "adds Llama-3.1-8B fp16 and removes Llama-3.1-8B bf16"),
        ('"arc_challenge"', '"gsm8k"', "adds gsm8k and removes arc_challenge"),
    ],
)
def test_more_and_fewer_variants_and_tasks_are_growth(old: str, new: str, what: str) -> None:
    """`plan` says what is added and removed; reading results with the manifest asks to submit it first."""
    changed = load(MANIFEST.replace(old, new))
    note = check_plan_change(changed)
    assert note is not None
    assert note.startswith(f"run 'r': this manifest {what}. Existing results stay.")
    assert ("is added again" in note) == ("removes" in what)
    assert note in plan_run(changed).document["notes"]
    with pytest.raises(UserInputError, match=f"since this run was submitted: it {what}. Submit it, or give the name"):
        hpcq.load("m.toml").status()
    write_run(changed)
    assert check_plan_change(load(MANIFEST.replace(old, new))) is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            MANIFEST.replace("limit = 2", "limit = 3"),
            "(tasks.limit was 2 and is 3), so Llama-3.1-8B bf16 would be evaluated again on arc_challenge. Submit",
        ),
        (
            LARGER + "seed = 7",
            "(evaluate.seed was 1234 and is 7), so Llama-3.1-8B bf16 would be evaluated again on arc_challenge. It",
        ),
        (
            MANIFEST.replace("[[models]]", '[[models]]\nid = "google/gemma-2b"\n[[models]]').replace("aaaaa", "bbbbb"),
            f"(models.1.revision was '{'a' * 40}' and is '{'b' * 40}'), so Llama-3.1-8B bf16 would be evaluated again",
        ),
        (
            MANIFEST + "batch_size = 3\n[tasks.options.arc_challenge]\nnum_fewshot = 5",
            "(tasks.options.arc_challenge.num_fewshot was unset and is 5), so Llama-3.1-8B bf16",
        ),
    ],
)
def test_a_change_of_existing_results_is_refused(text: str, sentence: str) -> None:
    """The message has the keys that matter, what would be computed again, and the fix: another run."""
    with pytest.raises(UserInputError) as refusal:
        check_plan_change(load(text))
    assert sentence in str(refusal.value)
    assert str(refusal.value).endswith("`hpcq submit MANIFEST -O run.name=r-2`.")


def test_another_fidelity_panel_is_growth() -> None:
    """A panel is added, its text changes, also because a calibrated scheme is added: nothing else is computed again."""
    panel = '[evaluate.synthetic]\nemulate = "accelerate"\n[fidelity]\ntokens = 512\n'
    for text, what in (
        (MANIFEST + panel, "adds fidelity_panel"),
        (MANIFEST + panel.replace("512", "1024"), "another fidelity_panel"),
        (MANIFEST.replace('"bf16"', '"bf16", "gptq-w4a16"') + panel.replace("512", "1024"), "another fidelity_panel"),
    ):
        changed = load(text)
        note = check_plan_change(changed)
        assert note is not None
        assert f"{what}. Existing results stay." in note
        write_run(changed)


@pytest.mark.parametrize("replaced", [1, 2])
def test_a_kill_between_two_files_is_completed(run: Path, replaced: int) -> None:
    """The lock file is replaced first: from then on `resume` and the resubmission by a job complete the change."""
    earlier = {name: (run / name).read_bytes() for name in FILES}
    write_run(load(LARGER))
    for name in FILES[replaced:]:
        (run / name).write_bytes(earlier[name])
    (run / ".change").touch()
    resumed = load_run("r")
    assert check_plan_change(resumed) is not None
    write_run(resumed)
    assert {unit["scheme"] for unit in json.loads((run / "plan.json").read_text())["units"]} == {"bf16", "fp16", None}
    assert [entry.name for entry in (run / "history").iterdir()] == ["0001"]
    assert (run / "history" / "0001" / "manifest.lock.toml").read_bytes() == earlier["manifest.lock.toml"]
    assert not (run / ".change").exists()


def test_of_two_submissions_at_once_the_second_is_repeated() -> None:
    """Its plan was made from the earlier one, and would remove what the first has added without a word."""
    first, second = load(LARGER), load(MANIFEST.replace('"arc_challenge"', '"arc_challenge", "gsm8k"'))
    check_unchanged_run(first)
    write_run(first)
    with pytest.raises(SetupError, match=r"another command has changed this run .* Run the command again"):
        check_unchanged_run(second)
    again = load_manifest(Path("m.toml"))
    check_unchanged_run(again)
    assert "adds gsm8k and removes Llama-3.1-8B fp16" in str(check_plan_change(again))


def test_another_order_of_tasks_changes_nothing() -> None:
    """The address of all responses depends on the order of the tasks; those of the tasks do not."""
    first = MANIFEST.replace('"arc_challenge"', '"arc_challenge", "gsm8k"')
    write_run(load(first))
    note = check_plan_change(load(first.replace('"arc_challenge", "gsm8k"', '"gsm8k", "arc_challenge"')))
    assert note == "run 'r': this manifest names the same tasks in another order. Existing results stay."


def test_a_run_of_an_earlier_version_can_get_more_variants(run: Path) -> None:
    """It has no merge.json: variants are compared by their address, and a new task is refused."""
    (run / "merge.json").unlink()
    assert "adds Llama-3.1-8B fp16" in str(check_plan_change(load(LARGER)))
    with pytest.raises(UserInputError, match="evaluated again on arc_challenge"):
        check_plan_change(load(MANIFEST.replace('"arc_challenge"', '"arc_challenge", "gsm8k"')))
