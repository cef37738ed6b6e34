"""Items in a user's folder: invalid lines, and too few items for the examples, are refused by `plan`."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from hpcq.catalog.task_index import index_file, write_index
from hpcq.core.errors import ManifestError
from hpcq.core.work_records import Task
from hpcq.manifest import load, resolve
from hpcq.manifest.context import manifest_cache
from hpcq.run.load import load_manifest
from hpcq.stage.staged_tasks import write_task_marker

MANIFEST = """[run]
name = "r"
[[models]]
id = "google/gemma-2b"
[schemes]
use = ["bf16"]
[tasks]
use = ["piqa"]
data = "items"
[tasks.options.piqa]
"""


@pytest.fixture(autouse=True)
def _items() -> None:
    """Items of a task whose examples come from another split, and an index that says so."""
    row = {"metric": "acc", "num_fewshot": 0, "requests_per_document": 2.0, "output_type": "loglikelihood"}
    row |= {"members": ["piqa"], "example_splits": ["train"], "excludes_item": [False]}
    write_index(index_file(), [("piqa", row)])
    Path("items/piqa").mkdir(parents=True)
    for split in ("train", "validation"):
        write(split, *({"goal": f"g{number}", "label": number} for number in range(3)))


def write(split: str, *items: object) -> Path:
    """Write the items of a split."""
    path = Path("items/piqa", f"{split}.jsonl").absolute()
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def problem(options: str = "") -> str:
    """Return the sentences with which the manifest is refused; '': it is not."""
    Path("m.toml").write_text(MANIFEST + options)
    try:
        resolve(load(Path("m.toml")))
    except ManifestError as error:
        return str(error)
    return ""


def test_valid_items() -> None:
    """As many examples as there are."""
    assert problem("num_fewshot = 3\n") == ""


def test_more_examples_than_items() -> None:
    """The node would find out after it has loaded the model."""
    sentence = "m.toml:11: tasks.options.piqa.num_fewshot: 4 is more than the 3 items that 'piqa' has for few-shot"
    assert sentence in problem("num_fewshot = 4\n")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"goal": "g"}\n{"goal": "g"', ":2: not JSON (Expecting ',' delimiter): write one JSON object per line."),
        ('{"goal": "é"}'.encode("latin-1"), ":1: not UTF-8 (invalid continuation byte): save the file in UTF-8."),
        (b'{"goal": "g"}\n{"goal": 3}', ":2: 'goal' is a number, but a text in "),
        (b'{"goal": ["g", {}]}', ":1: an element of 'goal' is an object, but a text in "),
        (b"[1]", ":1: a list instead of a JSON object with the item's fields."),
    ],
)
def test_an_invalid_line(content: bytes, sentence: str) -> None:
    """File, line, field and type, in one sentence; a corrected file is read again."""
    path = write("validation")
    path.write_bytes(content)
    assert problem().startswith("m.toml:9: tasks.data: ")
    assert f"{path}{sentence}" in problem()
    assert "\n" not in problem()
    write("validation", {"goal": "g"})
    assert problem() == ""


def test_more_examples_than_staged_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Staging counts the items of data sets on the hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = Path("m.toml")
    path.write_text(MANIFEST.replace('data = "items"', 'data = "hub"') + "num_fewshot = 4\n")
    cache = manifest_cache(load(path).manifest)
    for examples, is_refused in ((4, False), (3, True)):
        write_task_marker(Task(name="piqa"), cache, [], examples=examples)
        with pytest.raises(ManifestError, match="4 is more than the 3 items") if is_refused else nullcontext():
            load_manifest(path)
