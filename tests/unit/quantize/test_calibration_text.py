"""Files of calibration texts: formats, encodings, types, and the message for each error."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcq.core.errors import UserInputError
from hpcq.quantize import calibration_text
from hpcq.quantize.calibration_text import read_passages, summarize_text

TEXTS = ["One café.", "Two\u2028lines.", "Three \U0001d518."]
CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]


def lines_of(*rows: Any) -> bytes:
    """Return JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def texts_as_lines() -> bytes:
    """Return TEXTS as JSON lines, not escaped."""
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS).encode()


@pytest.mark.parametrize(
    "change",
    [
        bytes,
        lambda content: b"\xef\xbb\xbf" + content,
        lambda content: content.replace(b"\n", b"\r\n"),
        lambda content: content.replace(b"\n", b"\n\n \n"),
        lambda content: content.rstrip(b"\n"),
    ],
    ids=["plain", "byte order mark", "CRLF", "blank lines", "no last line end"],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".txt"])
def test_the_same_text_in_another_form_has_the_same_passages(
    tmp_path: Path, suffix: str, change: Callable[[bytes], bytes]
) -> None:
    """A byte order mark, other line ends and further blank lines change no passage.

    Observed: a byte order mark was an error.
    """
    path = tmp_path / f"text{suffix}"
    path.write_bytes(change(texts_as_lines() if suffix == ".jsonl" else "\n\n".join(TEXTS).encode()))

    assert read_passages(path) == TEXTS


def test_a_plain_text_is_split_at_blank_lines(tmp_path: Path) -> None:
    """A paragraph of several lines is one passage. Observed: `.txt` was documented, and failed."""
    path = tmp_path / "text.txt"
    path.write_bytes(b"\n\nA title\r\nand a line.\r\n \t\r\nAnother.\n")

    assert read_passages(path) == ["A title\nand a line.", "Another."]


def test_another_key_is_read(tmp_path: Path) -> None:
    """The column selects the key, also of chats."""
    path = tmp_path / "text.jsonl"
    path.write_bytes(lines_of({"content": "a", "messages": CHAT}, {"content": "b", "messages": CHAT[:1]}))

    assert read_passages(path, "content") == ["a", "b"]
    assert read_passages(path, "messages") == [CHAT, CHAT[:1]]
    assert summarize_text(path, "messages").is_chat


GOOD = b'{"text": "good"}\n\n'
LINE_FAULTS = {
    "no JSON": (b"good text\n", r"is not valid JSON: write one object {\"text\": "),
    "cut": (b'{"text": "good', "is not valid JSON"),
    "nested too deeply": (b"[" * 100_000, "is not valid JSON"),
    "a list": (b'["good"]', "is not a JSON object"),
    "a string": (b'"good"', "is not a JSON object"),
    "number": (b'{"text": 3}', "'text' is a number, not a string or a list of messages: correct or remove the line"),
    "Boolean": (b'{"text": true}', "'text' is a Boolean"),
    "null": (b'{"text": null}', "'text' is null"),
    "nested": (b'{"text": {"text": "good"}}', "'text' is an object"),
    "list of strings": (b'{"text": ["good"]}', "is a list whose elements are not all messages, such as"),
    "empty list": (b'{"text": []}', "is an empty list"),
    "message without content": (b'{"text": [{"role": "user"}]}', "not all messages"),
    "mixed": (lines_of({"text": CHAT}), "'text' is a chat in some lines and a string in others"),
    "other key": (
        b'{"prompt": "a", "answer": "b"}',
        "has no 'text', but 'prompt', 'answer': correct it, or set calibration.column",
    ),
    "no key": (b"{}", "has no 'text', but no keys"),
    "surrogate": (rb'{"text": "good \ud800 "}', r"half of a surrogate pair \(\\ud800\)"),
    "surrogate in a message": (lines_of({"text": [{"role": "user", "content": "\udc00"}]}), r"\(\\udc00\)"),
    "Latin-1": (b'{"text": "caf\xe9"}', r"is not UTF-8 \(byte 0xe9 at 14\): .*iconv -f LATIN1 -t UTF-8"),
    "NUL": (b'{"text": "a\0b"}', "has NUL bytes, as binary files and UTF-16 text have"),
}


@pytest.mark.parametrize(("line", "message"), LINE_FAULTS.values(), ids=list(LINE_FAULTS))
def test_an_invalid_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    """The message has the file, the line, the problem and a fix.

    Observed: Latin-1, surrogates and values of other types passed the plan.
    """
    path = tmp_path / "text.jsonl"
    path.write_bytes(GOOD + line)

    for read in (read_passages, summarize_text):
        with pytest.raises(UserInputError, match=rf"text.jsonl:3: .*{message}"):
            read(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".txt"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no text: write"),
        (b"\n \r\n", "has no text: write"),
        (gzip.compress(b"text"), "is a gzip file: decompress it with gunzip"),
        ("text".encode("utf-16"), "is UTF-16 text: convert it with `iconv -f UTF-16"),
        ("text".encode("utf-16-be"), r":1: has NUL bytes, .* UTF-16 text have: save it as UTF-8"),
        (b"PAR1\x15\x04", "is a Parquet file: write its texts as JSON lines"),
        (b"\x28\xb5\x2f\xfd\x00", "is a Zstandard file"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, suffix: str, content: bytes, message: str) -> None:
    """Empty, compressed and binary files are refused with what they are. Observed: an empty text passed the plan."""
    path = tmp_path / f"text{suffix}"
    path.write_bytes(content)

    with pytest.raises(UserInputError, match=message):
        read_passages(path)


def test_blank_strings_are_no_text(tmp_path: Path) -> None:
    """A file of blank strings is refused; a blank string among others is a passage."""
    path = tmp_path / "text.jsonl"
    path.write_bytes(lines_of({"text": " "}, {"text": ""}))
    with pytest.raises(UserInputError, match="has no text"):
        read_passages(path)
    path.write_bytes(lines_of({"text": ""}, {"text": "a"}))
    assert read_passages(path) == ["", "a"]


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", lines_of({"text": "x" * 100})), ("a.txt", b"x\n" * 100)])
def test_an_enormous_passage_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    """A line or paragraph that is too large for a tokenizer's memory is refused."""
    monkeypatch.setattr(calibration_text, "MAX_PASSAGE_BYTES", 64)
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(UserInputError, match=rf"{name}:1: is .*than 0 MiB: write"):
        read_passages(path)


def test_the_summary_counts_repeated_passages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The greatest number of tokens is in bytes; the summary of a large file is that of its first part."""
    path = tmp_path / "text.jsonl"
    path.write_bytes(lines_of({"text": "é"}, {"text": "é"}, {"text": "abc"}))

    summary = summarize_text(path)
    assert (summary.passages, summary.max_tokens, summary.max_distinct_tokens) == (3, 4 + 4 + 5, 4 + 5)
    assert summary.is_whole

    monkeypatch.setattr(calibration_text, "SUMMARY_BYTES", 1)
    path.write_bytes(path.read_bytes() + b"invalid")
    assert summarize_text(path).passages == 1
    assert not summarize_text(path).is_whole
