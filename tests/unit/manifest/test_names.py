"""Names of models and schemes: each entry has a line and a distinct name, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hpcq.core.errors import ManifestError
from hpcq.core.unit_ids import UnitId
from hpcq.core.work_records import UnitKind
from hpcq.manifest import Context, resolve
from hpcq.plan.planner import make_plan
from tests.checkpoint_files import write_safetensors
from tests.unit.manifest.test_resolver import make_checkpoint

LoadText = Callable[..., Context]

HEAD = '[run]\nname = "names"\n[schemes]\nuse = ["bf16"]\n[tasks]\nuse = ["arc_challenge"]\n'


def checkpoint(folder: str, tensor: str) -> None:
    """Write a checkpoint with one tensor of that name."""
    write_safetensors(make_checkpoint(Path(folder).absolute()) / "model.safetensors", **{tensor: (2,)})


def manifest(*paths: str, more: str = "") -> str:
    """Return a manifest of models without an id."""
    return HEAD + "".join(f"[[models]]\npath = {path!r}\n" for path in paths) + more


def problems(load_text: LoadText, text: str) -> list[str]:
    """Return the sentences that refuse `text`, without the place."""
    with pytest.raises(ManifestError) as caught:
        resolve(load_text(text))
    return [problem.split(": ", 2)[2] for problem in caught.value.problems]


def test_two_folders_of_one_name_are_two_lines(load_text: LoadText) -> None:
    """Two models in folders of the same last name are two variants, and a note says which is which.

    Observed: they became one line of the table.
    """
    checkpoint("a/model", "1")
    checkpoint("b/model", "2")
    plan = make_plan(resolve(load_text(manifest("a/model", "b/model/"))))

    variants = [unit.variant for unit in plan.units if unit.variant]
    assert len({variant.id for variant in variants}) == 2
    assert [variant.model.id for variant in variants] == ["a/model", "b/model"]
    for variant in variants:
        assert f"{variant.id}: its model is {variant.model.id}." in plan.notes


def test_models_of_different_names_need_no_note(load_text: LoadText) -> None:
    """There is no note if the names differ."""
    checkpoint("a/one", "1")
    checkpoint("a/two", "2")
    assert not [note for note in make_plan(resolve(load_text(manifest("a/one", "a/two")))).notes if "its model" in note]


def test_equal_content_is_refused(load_text: LoadText) -> None:
    """A copy, a link or another spelling of a folder is refused with both names, and never becomes fewer lines.

    Observed: equal folders became one line of the table.
    """
    checkpoint("a/model", "1")
    checkpoint("b/model", "1")
    Path("link").symlink_to("a/model")
    for other in ("b/model", "link", "./a/model", "a/../a/model/"):
        [sentence] = problems(load_text, manifest("a/model", other))
        assert sentence == f"'{other}' has the same files as 'a/model': list only one of them."


@pytest.mark.parametrize("path", [".", "./", "here/..", "../model/.", "../model", "{folder}//"])
def test_a_folder_always_has_a_name(
    load_text: LoadText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """However the path of a folder is written, the last part of the model's name is the folder's.

    Observed: a trailing slash gave an empty name.
    """
    checkpoint("model", "1")
    Path("model/here").mkdir()
    monkeypatch.chdir("model")
    written = path.format(folder=tmp_path / "model")
    [unit] = [unit for unit in make_plan(resolve(load_text(manifest(written)))).units if unit.kind is UnitKind.EVALUATE]

    assert unit.variant
    assert unit.variant.model.id.rsplit("/", 1)[-1] == "model"


@pytest.mark.parametrize("name", ["with space", "模型", "x" * 200, "a.b_c-d", "models--org--name"])
def test_unusual_folder_names_make_valid_ids(load_text: LoadText, name: str) -> None:
    """Spaces, other scripts, long names and separators give ids that fit into a file name and can be parsed."""
    checkpoint(name, "1")
    [unit] = [unit for unit in make_plan(resolve(load_text(manifest(name)))).units if unit.kind is UnitKind.EVALUATE]

    assert len(f"{unit.id}.10of100".encode()) < 255
    assert unit.id.isascii()
    parts = UnitId.parse(unit.id)
    assert parts
    assert parts.has_component("bf16")
    assert unit.variant
    assert unit.variant.model.id == name


def test_names_that_differ_only_in_case_are_two_models(load_text: LoadText) -> None:
    """Two folders whose names differ in case are two models."""
    checkpoint("Model", "1")
    checkpoint("model", "2")
    assert len(make_plan(resolve(load_text(manifest("Model", "model")))).units) == 3


@pytest.mark.parametrize("character", ["\\n", "\\t", "\\u001b", "\\u202e", "\\u200b", "\\u2028", "\\u0000"])
def test_names_are_one_printable_line(load_text: LoadText, character: str) -> None:
    """Line breaks, tabs, control characters and invisible characters are refused in each name that reports show."""
    for text in (
        HEAD + f'[[models]]\nid = "org/a{character}b"\n',
        HEAD + f'[[models]]\npath = "a{character}b"\n',
        HEAD + f'[[models]]\nid = "a/b"\ncheckpoints = ["./a{character}b"]\n',
        HEAD + f'[[models]]\nid = "a/b"\n[[schemes.define]]\nname = "a{character}b"\nbase = "bf16"\n',
    ):
        assert problems(load_text, text)[0].startswith(
            "must be one line of printable characters" if character != "\\u0000" else "must not contain a NUL"
        )


@pytest.mark.parametrize(
    "key",
    ["paths.runs", "paths.logs", "paths.checkpoints", "paths.cache", "evaluate.environment", "calibration.dataset"],
)
def test_what_reaches_scripts_and_file_names_is_one_printable_line(load_text: LoadText, key: str) -> None:
    """Observed: a line break and a quote in `paths.logs` became a shell command in the job."""
    section, _, name = key.partition(".")
    text = HEAD + f'[[models]]\nid = "org/model"\n[{section}]\n{name} = "a\\n\'; touch trap; \'"\n'
    assert problems(load_text, text)[0].startswith("must be one line of printable characters")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("a--b", "'a--b' would make ids ambiguous: use letters, digits, '.', '_' and single '-'."),
        ("a - b", "'a - b' would make ids ambiguous: use letters, digits, '.', '_' and single '-'."),
        ("Merge", "'Merge' is a kind of unit, which `hpcq cancel Merge` selects: choose another name."),
    ],
)
def test_names_of_schemes_do_not_collide_with_ids(load_text: LoadText, name: str, sentence: str) -> None:
    """A scheme's name contains no separator of ids and is no kind of unit."""
    scheme = f'[[schemes.define]]\nname = "{name}"\nbase = "bf16"\n'
    assert problems(load_text, HEAD + '[[models]]\nid = "a/b"\n' + scheme) == [sentence]
