"""Changes of the hub's repositories during a test: a branch that moves, a gate."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.hub_server import GATED, HubServer


@contextlib.contextmanager
def moved_branch(hub: HubServer, name: str, kind: str, change: Callable[[Path], None]) -> Iterator[None]:
    """While the block runs, main of a repository has another commit; the earlier one exists as on the hub."""
    folder = hub.repository(name, kind)
    before = folder.with_name(f"{folder.name}@before")
    shutil.copytree(folder, before)
    change(folder)
    try:
        yield
    finally:
        shutil.rmtree(folder)
        before.rename(folder)


def change_model(folder: Path) -> None:
    """Change a model's configuration so that its responses differ."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "rms_norm_eps": 0.5}), encoding="utf-8")


def reverse_items(folder: Path) -> None:
    """Reverse the items of all splits of a data set."""
    for path in folder.rglob("*.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join(reversed(lines)) + "\n", encoding="utf-8")


@contextlib.contextmanager
def gated(hub: HubServer, name: str, kind: str, tokens: str = "") -> Iterator[None]:
    """While the block runs, the files of a repository are only for `tokens`; empty: for any token."""
    gate = hub.repository(name, kind) / GATED
    gate.write_text(tokens, encoding="utf-8")
    try:
        yield
    finally:
        gate.unlink()
