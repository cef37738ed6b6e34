"""Items in JSON lines files: errors have the file, the line and the field."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hpcq.core.errors import UserInputError, WorkerError
from hpcq.core.work_records import Task
from hpcq.evaluate.json_documents import read_json_documents
from hpcq.evaluate.lm_eval_tasks import build_tasks


def test_all_lines_are_read(tmp_path: Path) -> None:
    """Empty lines are skipped, missing fields are null, and integers and fractions are one type."""
    path = tmp_path / "test.jsonl"
    path.write_text('{"a": 1, "b": ["x"]}\n\n{"a": 1.5}\r\n{"a": null, "b": ["\u2028"]}', encoding="utf-8")
    documents = read_json_documents({"test": [path]})["test"]
    assert list(documents["a"]) == [1, 1.5, None]
    assert list(documents["b"]) == [["x"], None, ["\u2028"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": ', ":2: not JSON"),
        (b'{"a": 1}\n\0\0\0', ":2: not JSON"),
        ('{"a": 1}'.encode("utf-16"), ":1: not UTF-8"),
        ('{"a": "é"}'.encode("latin-1"), ":1: not UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', ":1: not JSON"),
        (b"[1, 2]", ":1: a list instead of a JSON object"),
        (b'{"a": "x"}\n{"a": 5}', ":2: 'a' is a number, but a text in "),
        (b'{"a": "x"}\n{"a": ["x"]}', ":2: 'a' is a list, but a text in "),
        (b'{"a": ["x"]}\n{"a": [{"b": 1}]}', ":2: an element of 'a' is an object, but a text in "),
        (b'{"a": {"b": 1}}\n{"a": {"b": "x"}}', ":2: 'a.b' is a text, but a number in "),
        (b'{"a": [1, "x"]}', ":1: an element of 'a' is a text, but a number in "),
        (b'{"a": 1' + b"0" * 30 + b"}", ": its documents do not fit a table"),
    ],
)
def test_a_damaged_line_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    """Cut files, other encodings, other documents and other types are refused in one sentence."""
    path = tmp_path / "test.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserInputError, match=re.escape(f"{path}{message}")) as refused:
        read_json_documents({"test": [path]})
    assert "\n" not in str(refused.value)


def test_an_item_without_an_answer_is_refused(arc_items: Path) -> None:
    """An item that lm-eval cannot score is refused with its task and number before a model is loaded."""
    path = arc_items / "test.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[3] = json.dumps({name: value for name, value in json.loads(lines[3]).items() if name != "answerKey"})
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(WorkerError, match=rf"arc_challenge: .* in document 3 .* Check the items in {arc_items}"):
        build_tasks([Task(name="arc_challenge", data_path=str(arc_items))])
