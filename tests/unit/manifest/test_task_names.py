"""Names of tasks: tags, groups and members, names that cannot be evaluated, the user's definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpcq.catalog.task_index import definitions_file, index_file, write_index
from hpcq.core import environments
from hpcq.core.errors import ManifestError
from hpcq.core.task_definitions import copy_definitions, digest_of_definitions, read_folders
from hpcq.core.work_records import Task
from hpcq.manifest import ResolvedManifest, load, resolve

MANIFEST = """[run]
name = "r"
[[models]]
id = "google/gemma-2b"
[schemes]
use = ["bf16"]
[tasks]
"""


def entry(*members: str, **more: Any) -> dict[str, Any]:
    """Return an entry of the index."""
    return {"metric": "acc", "num_fewshot": 0, "requests_per_document": 2.0, "output_type": "loglikelihood"} | {
        "datasets": ["org/data"], "members": list(members), "is_group": len(members) > 1, **more
    }  # fmt: skip


@pytest.fixture(autouse=True)
def _index() -> None:
    """An index with a tag, groups and a task that cannot be evaluated."""
    entries = {
        "piqa": entry("piqa"),
        "one": entry("one"),
        "two": entry("two"),
        "tag": entry("one", "two", children=["one", "two"]),
        "unscored": entry("one", "two", "three", children=["tag", "three"]),
        "three": entry("three"),
        "group": entry("two", "three"),
        "humaneval": entry("humaneval", runs_code=True),
        "texts": entry("texts", output_type="generate_until"),
    }
    write_index(index_file(), entries.items())


def resolved(tasks: str) -> ResolvedManifest:
    """Return a manifest with these lines in [tasks]."""
    Path("m.toml").write_text(MANIFEST + tasks)
    return resolve(load(Path("m.toml")))


@pytest.mark.parametrize(
    ("named", "evaluated"),
    [
        ('["piqa"]', ["piqa"]),
        ('["tag"]', ["one", "two"]),
        ('["unscored"]', ["one", "two", "three"]),
        ('["group", "one"]', ["group", "one"]),
        ('["arc_challenge", "piqa"]', ["arc_challenge", "piqa"]),
    ],
)
def test_names_that_have_no_score_stand_for_their_members(named: str, evaluated: list[str]) -> None:
    """Tags and groups without metrics; other groups stay whole."""
    assert [task.name for task in resolved(f"use = {named}\n").tasks] == evaluated


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ('use = ["group", "two"]', "m.toml:8: tasks.use: 'two' and 'group' both contain 'two': name only one of them."),
        ('use = ["group", "tag"]', "m.toml:8: tasks.use: 'two' and 'group' both contain 'two': name only one of them."),
        ('use = ["tag", "one"]', "'one' is listed twice, here and in a suite or a tag."),
        ('use = ["humaneval"]', "'humaneval' runs code that the models write"),
        ('suites = ["qwen"]', "m.toml:8: tasks.suites: 'humaneval' runs code that the models write"),
        (
            'use = ["piqaa"]',
            "unknown task 'piqaa': lm-eval has no task, group or tag of this name. Did you mean 'piqa'?",
        ),
        ('use = ["group"]\ndata = "items"', "no items of 'two' (2 of the 2 members of 'group')"),
        ('use = ["piqa"]\ninclude = ["none"]', "m.toml:9: tasks.include: 'none' is not a folder."),
        ('use = ["piqa"]\ninclude = ["mine"]', "'piqa' is also a name in lm-eval: give your definition another one."),
        (
            'use = ["group"]\n[tasks.options.group]\nitems = "listed"',
            "tasks.options.group.items: 'listed' has no items of 'three', so group has no score: add some",
        ),
        *(
            (f'use = ["piqa"]\n[tasks.options.piqa]\nitems = {table}', f"tasks.options.piqa.items{message}")
            for table, message in {
                "{}": ": the table lists no items.",
                '{ piqa = "3-" }': ".piqa: must be numbers of items such as '0-4,7', not '3-'.",
                '{ piqa = "3-1" }': ".piqa: must have ranges from a smaller to a larger number, not '3-1'.",
            }.items()
        ),
        (
            'use = ["texts"]\n[tasks.options.texts]\nrepeats = 4\ngen_kwargs = { do_sample = false }',
            "tasks.options.texts.repeats: 4 greedy texts of one prompt are equal",
        ),
        (
            'use = ["own"]\ninclude = ["choices"]\n[tasks.options.own]\nrepeats = 4',
            "tasks.options.own.repeats: has no effect: 'own' generates no text.",
        ),
        ('use = ["piqa"]\ninclude = ["panel"]', "tasks.include: 'fidelity_panel' is the name of the fidelity panel"),
        ('use = ["mine"]\ninclude = ["code"]', "tasks.trust_code: 'mine' in tasks.include calls Python functions"),
    ],
)
def test_a_name_is_refused_with_the_reason(tasks: str, message: str) -> None:
    """Before anything is staged or submitted."""
    Path("items/three").mkdir(parents=True)
    Path("listed").write_text("two 1\n")
    own = {"mine": "piqa", "code": "mine", "choices": "own", "panel": "fidelity_panel"}
    for folder, name in own.items():
        Path(folder).mkdir()
        Path(folder, "a.yaml").write_text(f"task: {name}\n")
        file = definitions_file(digest_of_definitions([Path(folder)]))
        write_index(file, [(name, entry(name, has_code=folder == "code"))])

    with pytest.raises(ManifestError) as raised:
        resolved(tasks + "\n")
    assert message in str(raised.value)


def test_a_missing_package_is_named_with_its_installation() -> None:
    """After the installation the task is accepted, without another index."""
    write_index(index_file(), [("asian", entry("asian", missing_packages=["jieba", "sklearn"]))])
    with pytest.raises(ManifestError) as raised:
        resolved('use = ["asian"]\n')
    python = environments.interpreter("transformers")
    assert "'asian' cannot be evaluated: it needs the Python packages jieba, sklearn, which" in str(raised.value)
    assert f"run `{python} -m pip install jieba scikit-learn`" in str(raised.value)

    for name in ("jieba", "sklearn"):
        (python.parents[1] / "lib/python3.11/site-packages" / name).mkdir(parents=True)
    assert [task.name for task in resolved('use = ["asian"]\n').tasks] == ["asian"]


def test_the_items_of_a_group_are_in_one_folder_per_member() -> None:
    """All of them count in the digest."""
    for member in ("two", "three"):
        Path("items", member).mkdir(parents=True)
        Path("items", member, "test.jsonl").write_text("{}\n")
    first = resolved('use = ["group"]\ndata = "items"\n').tasks[0]
    Path("items/three/test.jsonl").write_text('{"changed": 1}\n')
    second = resolved('use = ["group"]\ndata = "items"\n').tasks[0]

    assert first.data_path == second.data_path == str(Path("items").absolute())
    assert first.data_digest != second.data_digest


def test_own_definitions_are_part_of_the_task_and_copied() -> None:
    """A change of any file is another task; jobs read the copy, and staging the originals that have not changed."""
    own = Path("own")
    own.mkdir()
    (own / "a.yaml").write_text("task: mine\n")
    (own / "data.jsonl").write_text("{}\n")
    write_index(definitions_file(digest_of_definitions([own.absolute()])), [("mine", entry("mine", datasets=[]))])
    task = resolved('use = ["mine", "piqa"]\ninclude = ["own"]\n').tasks[0]

    assert task.definitions
    assert read_folders(task) == (own.absolute(),)
    copy_definitions(task)
    (own / "data.jsonl").write_text('{"changed": 1}\n')
    assert [path.read_text() for path in read_folders(task)[0].glob("*.jsonl")] == ["{}\n"]
    assert digest_of_definitions([own.absolute()]) != task.definitions
    assert Task(name="mine", definitions=task.definitions) != Task(name="mine")
