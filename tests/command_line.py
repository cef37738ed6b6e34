"""Helper that runs the real command line in a subprocess."""

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
"""Manifest with synthetic responses, which runs in seconds: 2 variants × 2 shards, one quantization, one merge."""


@dataclass(frozen=True, kw_only=True)
class CommandResult:
    """Result of a command.

    Attributes:
        code: Exit code.
        out: Standard output.
        err: Standard error.
    """

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output parsed as one JSON document."""
        return json.loads(self.out)


@dataclass(frozen=True, kw_only=True)
class Hpcq:
    """Runs `python -m hpcq`.

    Attributes:
        python: Interpreter of the environment.
        folder: Working directory.
        wrapper: Command that executes it, e.g. prlimit with its options.
    """

    python: Path
    folder: Path
    wrapper: tuple[str, ...] = ()

    def __call__(
        self, *arguments: str | Path, timeout_s: float = 900, env: dict[str, str] | None = None
    ) -> CommandResult:
        """Run a command and wait until it exits. `timeout_s` only ends a command that hangs."""
        command: Sequence[str] = [*self.wrapper, str(self.python), "-m", "hpcq", *map(str, arguments)]
        process = subprocess.run(
            command,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
        )
        return CommandResult(code=process.returncode, out=process.stdout, err=process.stderr)

    def write(self, text: str, name: str = "manifest.toml") -> Path:
        """Write a file, by default the manifest, to the folder."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path
