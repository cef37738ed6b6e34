"""A file system that becomes full while a command stages."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcq.core.hub_cache import RepoKind
from hpcq.stage.snapshot import MARGIN_BYTES, is_staged
from tests.hub.manifests import MODEL_ONLY, SMALL
from tests.hub.repositories import ARC, MODEL
from tests.hub.user import User
from tests.hub_server import HubServer

MEASURES = {
    "a model": (MODEL_ONLY, {"slow_s": 10_000, "only": "cdn"}, "GET cdn 200"),
    "a data set": (SMALL, {"delay_s": 10_000, "only": f"datasets/{ARC}/resolve"}, "delayed"),
}


@pytest.fixture
def small_home(user: User) -> Iterator[Path]:
    """The user's home in a file system that is just large enough."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a file system")
    user.home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={MARGIN_BYTES + 8_000_000}", "none", user.home], check=True)
    yield user.home
    subprocess.run(["umount", "--lazy", user.home], check=True)


def fill(folder: Path) -> Path:
    """Write a file until the disk is full."""
    path = folder / "filler"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 20)):
            pass
    assert not shutil.disk_usage(folder).free
    return path


@pytest.mark.parametrize(("text", "options", "label"), MEASURES.values(), ids=MEASURES)
def test_a_disk_that_becomes_full(
    user: User, hub: HubServer, small_home: Path, text: str, options: dict[str, object], label: str
) -> None:
    """One sentence names the folder; after space is freed, the next command continues."""
    hub.set(**options)
    manifest = user.hpcq.write(text)
    process = subprocess.Popen(
        [user.hpcq.python, "-m", "hpcq", "stage", manifest],
        cwd=user.hpcq.folder,
        env={**os.environ, **user.environment()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while label not in hub.counts():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    filler = fill(small_home)
    hub.set(slow_s=0, delay_s=0)
    _, errors = process.communicate()
    assert process.returncode == 3, errors
    hint = "the disk is full: free some space and repeat the command (No space left on device)."
    assert errors.splitlines()[-1] == f"{user.cache.hub}: {hint}"
    assert "Traceback" not in errors
    filler.unlink()
    user.succeed("stage", user.hpcq.write(MODEL_ONLY))
    assert is_staged(RepoKind.MODEL, MODEL, hub.commit(MODEL), user.cache)
