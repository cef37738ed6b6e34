"""Passages of a calibration text in JSON lines or plain text. Messages have the file, the line and the fix.

A `.jsonl` file has one JSON object per line; a passage is a string, or the messages of a chat. A `.txt` file has one
passage per paragraph; blank lines separate paragraphs. Both are UTF-8. A byte order mark, and the kind
of line ends, are ignored.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from hpcq.core.errors import UserInputError
from hpcq.core.frozen import dataclass

TEXT_SUFFIXES = (".jsonl", ".txt")
DEFAULT_COLUMN = "text"
MAX_PASSAGE_BYTES = 2**24
"""Size of the longest line or paragraph: a tokenizer needs about 100 times as much memory."""
SUMMARY_BYTES = 2**26
"""Part of a file that a summary reads; it takes about a second."""

Message = dict[str, str]
Passage = str | list[Message]
"""A text, or the messages of a chat, each with 'role' and 'content'."""

_OTHER_FORMATS = {
    b"\x1f\x8b": ("a gzip file", "decompress it with gunzip"),
    b"\x28\xb5\x2f\xfd": ("a Zstandard file", "decompress it with unzstd"),
    b"\xfd7zXZ": ("an xz file", "decompress it with unxz"),
    b"PK\x03\x04": ("a zip archive", "extract it"),
    b"PAR1": ("a Parquet file", "write its texts as JSON lines"),
    codecs.BOM_UTF16_LE: ("UTF-16 text", "convert it with `iconv -f UTF-16 -t UTF-8`"),
    codecs.BOM_UTF16_BE: ("UTF-16 text", "convert it with `iconv -f UTF-16 -t UTF-8`"),
}
"""First bytes of files that are not UTF-8 text, with their format and the fix."""
_KINDS = {list: "a list", dict: "an object", bool: "a Boolean", int: "a number", float: "a number", type(None): "null"}
_MESSAGE_KEYS = ("role", "content")
_MAX_NAMES = 8


@dataclass(frozen=True, kw_only=True)
class TextSummary:
    """What a plan needs to know about a text.

    Attributes:
        passages: Number of passages read.
        max_tokens: Upper limit of their tokens with any tokenizer: their bytes in UTF-8, plus two per passage.
        max_distinct_tokens: The same without repeated passages.
        is_chat: Whether the passages are chats.
        is_whole: Whether all of the file was read; otherwise the first SUMMARY_BYTES were.
    """

    passages: int
    max_tokens: int
    max_distinct_tokens: int
    is_chat: bool
    is_whole: bool


def read_passages(path: Path, column: str = DEFAULT_COLUMN, *, table: str = "calibration") -> list[Passage]:
    """Return all passages of a file in order; blank lines are skipped.

    Args:
        path: File with one of TEXT_SUFFIXES.
        column: Key of a passage in the objects of a `.jsonl` file.
        table: Table of the manifest that names the text, for messages.

    Raises:
        UserInputError: A line is invalid, or the file has no text.
    """
    return [passage for _, passage in _numbered_passages(path, column, table=table)]


def summarize_text(path: Path, column: str = DEFAULT_COLUMN) -> TextSummary:
    """Return the summary of a file, whose first part is checked as by `read_passages`.

    Raises:
        UserInputError: A line is invalid, or the file has no text.
        OSError: The file cannot be read.
    """
    status = path.stat()
    return _summarize(path, column, (status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=16)
def _summarize(path: Path, column: str, _stamp: tuple[int, int]) -> TextSummary:
    sizes: dict[str, int] = {}
    passages = total = 0
    is_chat = False
    for _, passage in _numbered_passages(path, column, max_bytes=SUMMARY_BYTES):
        is_chat = not isinstance(passage, str)
        key = passage if isinstance(passage, str) else json.dumps(passage)
        sizes[key] = len(key.encode()) + 2
        passages, total = passages + 1, total + sizes[key]
    return TextSummary(
        passages=passages,
        max_tokens=total,
        max_distinct_tokens=sum(sizes.values()),
        is_chat=is_chat,
        is_whole=_stamp[0] <= SUMMARY_BYTES,
    )


def passage_problem(value: object) -> str | None:
    """Return why a value is not a passage, as a clause; None: it is one."""
    if isinstance(value, str):
        return _surrogate_problem(value)
    if not isinstance(value, list):
        return f"is {_KINDS.get(type(value), type(value).__name__)}, not a string or a list of messages"
    if not value:
        return "is an empty list, not a string or a list of messages"
    for message in value:
        contents = [message.get(key) for key in _MESSAGE_KEYS] if isinstance(message, dict) else [None]
        if not all(isinstance(content, str) for content in contents):
            return 'is a list whose elements are not all messages, such as {"role": "user", "content": "…"}'
        if problem := next(filter(None, map(_surrogate_problem, map(str, contents))), None):
            return problem
    return None


def _surrogate_problem(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"has half of a surrogate pair (\\u{ord(text[error.start]):04x}), which no tokenizer can read"
    return None


def _numbered_passages(
    path: Path, column: str, max_bytes: int | None = None, *, table: str = "calibration"
) -> Iterator[tuple[int, Passage]]:
    """Yield the passages with the numbers of their first lines.

    Args:
        path: The file.
        column: Key of the passages.
        max_bytes: Stop after this part of the file; None: read all of it.
        table: Table of the manifest that names the text.
    """
    lines = _lines(path, max_bytes)
    is_plain = path.suffix == ".txt"
    passages = (
        _paragraphs(path, lines) if is_plain else (_parsed(path, *line, column, table) for line in lines if line[1])
    )
    first: Passage | None = None
    has_text = False
    for number, passage in passages:
        has_text = has_text or not isinstance(passage, str) or bool(passage.strip())
        if first is None:
            first = passage
        elif isinstance(passage, str) != isinstance(first, str):
            raise _error(path, number, f"'{column}' is a chat in some lines and a string in others", "write one kind")
        yield number, passage
    if not has_text:
        raise UserInputError(f"{path}: has no text: {_expected(path, column)}.")


def _lines(path: Path, max_bytes: int | None) -> Iterator[tuple[int, str]]:
    """Yield the lines without line ends and surrounding blanks, numbered from 1."""
    read = 0
    with path.open("rb") as file:
        _check_format(path, file.peek(8))
        number = 0
        while (max_bytes is None or read < max_bytes) and (raw := file.readline(MAX_PASSAGE_BYTES + 1)):
            number, read = number + 1, read + len(raw)
            if len(raw) > MAX_PASSAGE_BYTES:
                raise _error(path, number, f"is longer than {MAX_PASSAGE_BYTES // 2**20} MiB", _expected(path))
            yield number, _decoded(path, number, raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw)


def _check_format(path: Path, begin: bytes) -> None:
    for magic, (name, fix) in _OTHER_FORMATS.items():
        if begin.startswith(magic):
            raise UserInputError(f"{path}: is {name}: {fix}.")


def _decoded(path: Path, number: int, raw: bytes) -> str:
    if b"\0" in raw:
        raise _error(path, number, "has NUL bytes, as binary files and UTF-16 text have", "save it as UTF-8 text")
    try:
        return raw.decode().strip()
    except UnicodeDecodeError as error:
        raise _error(
            path,
            number,
            f"is not UTF-8 (byte 0x{raw[error.start]:02x} at {error.start + 1})",
            "if it is Latin-1, convert it with `iconv -f LATIN1 -t UTF-8`",
        ) from None


def _paragraphs(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    paragraph: list[str] = []
    begin = size = 0
    for number, line in lines:
        if line:
            begin = begin if paragraph else number
            paragraph.append(line)
            size += len(line)
            if size > MAX_PASSAGE_BYTES:
                raise _error(
                    path, begin, f"is a paragraph of more than {MAX_PASSAGE_BYTES // 2**20} MiB", _expected(path)
                )
        elif paragraph:
            yield begin, "\n".join(paragraph)
            paragraph, size = [], 0
    if paragraph:
        yield begin, "\n".join(paragraph)


def _parsed(path: Path, number: int, line: str, column: str, table: str) -> tuple[int, Passage]:
    """Return the passage in one line of JSON."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise _error(path, number, "is not valid JSON", _expected(path, column)) from None
    if not isinstance(row, dict):
        raise _error(path, number, "is not a JSON object", _expected(path, column))
    if column not in row:
        names = ", ".join(f"'{name}'" for name in list(row)[:_MAX_NAMES]) or "no keys"
        raise _error(path, number, f"has no '{column}', but {names}", f"correct it, or set {table}.column")
    value: Any = row[column]
    if problem := passage_problem(value):
        raise _error(path, number, f"'{column}' {problem}", "correct or remove the line")
    return number, value


def _expected(path: Path, column: str = DEFAULT_COLUMN) -> str:
    if path.suffix == ".txt":
        return "write passages that are separated by blank lines"
    return f'write one object {{"{column}": "…"}} per line'


def _error(path: Path, number: int, problem: str, fix: str) -> UserInputError:
    return UserInputError(f"{path}:{number}: {problem}: {fix}.")
