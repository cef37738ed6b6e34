"""Damage of files as a whole, and changes of rows in JSON lines."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any


def break_file(path: Path, random: Random) -> str:
    """Damage a JSON file, remove it, or put a folder in its place; return how."""
    content = path.read_bytes()
    how = random.choice(
        ["missing", "empty", "cut", "BOM", "UTF-16", "list", "null", "pointer", "folder", "duplicate keys"]
    )
    changed = {
        "empty": b"",
        "cut": content[: len(content) // 2],
        "BOM": b"\xef\xbb\xbf" + content,
        "UTF-16": content.decode().encode("utf-16"),
        "list": b"[]",
        "null": b"null",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "duplicate keys": content.replace(b"{", b'{"bos_token_id": 5, "bos_token_id": 1, ', 1),
    }.get(how)
    path.unlink()
    if changed is not None:
        path.write_bytes(changed)
    elif how == "folder":
        path.mkdir()
    return how


def change_lines(path: Path, random: Random) -> str:
    """Change encoding, line ends or name of a file with JSON lines, or damage it; return how."""
    content = path.read_bytes()
    how = random.choice(
        ["BOM", "CRLF", "CR", "blank lines", "latin-1", "UTF-16", "cut", "one array", "no newline", "null bytes",
         "missing", "empty", "comment", "renamed", "surrogate", "scalar", "compressed"]
    )  # fmt: skip
    first, rest = content.split(b"\n", 1)
    changed = {
        "BOM": b"\xef\xbb\xbf" + content,
        "CRLF": content.replace(b"\n", b"\r\n"),
        "CR": content.replace(b"\n", b"\r"),
        "blank lines": b"\n\n" + content.replace(b"\n", b"\n\n"),
        "latin-1": b'{"question": "caf\xe9", "text": "caf\xe9", "answer": "#### 1"}\n' + content,
        "UTF-16": content.decode().encode("utf-16"),
        "cut": content[: len(content) - 40],
        "one array": b"[" + b",".join(content.splitlines()) + b"]",
        "no newline": content.rstrip(b"\n"),
        "null bytes": first + b"\0\0\n" + rest,
        "empty": b"",
        "comment": b"# text\n" + content,
        "surrogate": first.replace(b'": "', b'": "\\ud800', 1) + b"\n" + rest,
        "scalar": b'5\n"x"\nnull\n' + content,
        "compressed": gzip.compress(content),
    }.get(how)
    if how == "renamed":
        path.rename(path.with_name(random.choice(["dev.jsonl", "TEST.JSONL", "data.json", ".test.jsonl"])))
    elif changed is None:
        path.unlink()
    else:
        path.write_bytes(changed)
    return how


def edit_rows(path: Path, change: Callable[[list[dict[str, Any]]], str | None]) -> str | None:
    """Write the rows of a file again after `change`; return what that returns."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    done = change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return done
