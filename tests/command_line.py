"""The real command line in a process of its own, as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REHEARSAL = """
[run]
name = "rehearsal"
[cluster]
profile = "local"
[[models]]
id = "meta-llama/Llama-3.1-8B-Instruct"
[schemes]
use = ["bf16", "synthetic-w4a16"]
[tasks]
use = ["arc_challenge", "gsm8k"]
limit = 5
[evaluate]
backend = "synthetic"
shards = 2
"""
"""A manifest that runs without a model in seconds: 2 variants × 2 shards, one quantization, one merge."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output, which must be one JSON document."""
        return json.loads(self.out)


@dataclass(frozen=True, kw_only=True)
class Hpcq:
    """`python -m hpcq` of one environment, typed in one folder, behind a command such as prlimit if need be."""

    python: Path
    folder: Path
    before: tuple[str, ...] = ()

    def __call__(self, *words: str | Path, timeout_s: float = 240, env: dict[str, str] | None = None) -> Done:
        """Type a command and wait for its end."""
        command: Sequence[str] = [*self.before, str(self.python), "-m", "hpcq", *map(str, words)]
        done = subprocess.run(
            command,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
        )
        return Done(code=done.returncode, out=done.stdout, err=done.stderr)

    def write(self, text: str, name: str = "manifest.toml") -> Path:
        """Put a manifest into the folder."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path
