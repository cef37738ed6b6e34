"""Caches that several users share: what one has staged is used by others, as its umask allows."""

from __future__ import annotations

import dataclasses
import os
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from hpcq.core.paths import cache_folder
from tests import isolation
from tests.hub.manifests import MODEL_ONLY
from tests.hub.other_users import as_other_user
from tests.hub.repositories import MODEL
from tests.hub.user import User
from tests.hub_server import HubServer

GROUP, OWNER, MEMBER, STRANGER = 2000, 2001, 2002, 2003

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act as several users")

NewUser = Callable[[int, str], User]


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that all users can enter, which pytest's are not."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o755)
        yield path


@pytest.fixture
def cache(shared: Path) -> Path:
    """A cache in which only its owner can create files."""
    folder = shared / "cache"
    folder.mkdir()
    os.chown(folder, OWNER, GROUP)
    folder.chmod(0o2755)
    return folder


@pytest.fixture
def other_user(shared: Path, new_user: Callable[[Path], User]) -> NewUser:
    """Make a user with an id and a umask; the owner and the member of the group."""

    def make(uid: int, umask: str) -> User:
        own = shared / str(uid)
        user = new_user(own)
        isolation.link_cache(own / "hpcq-cache", cache_folder())
        os.chown(own / "hpcq-cache", uid, uid)
        groups = () if uid == STRANGER else (GROUP,)
        variables = {"HPCQ_CACHE": str(own / "hpcq-cache"), "HOME": str(own / "work")}
        user = dataclasses.replace(user, variables=variables)
        return as_other_user(user, uid, umask=umask, groups=groups)

    return make


def manifest(user: User, text: str, cache: Path) -> Path:
    """Write a manifest with a cache."""
    return user.hpcq.write(f'{text}[paths]\ncache = "{cache}"\n')


def start(user: User, *arguments: str | Path) -> subprocess.Popen[bytes]:
    """Start a command of hpcq."""
    command = [*user.hpcq.wrapper, user.hpcq.python, "-m", "hpcq", *arguments]
    variables = {**os.environ, **user.environment()}
    return subprocess.Popen(command, cwd=user.hpcq.folder, env=variables, stdout=subprocess.DEVNULL)


def modes(paths: Iterable[Path]) -> set[int]:
    """Return the permissions of files and folders, without links."""
    return {stat.S_IMODE(path.stat().st_mode) & 0o777 for path in paths if not path.is_symlink()}


def test_what_submit_has_staged_is_shared_as_the_umask_says(hub: HubServer, cache: Path, other_user: NewUser) -> None:
    """With umask 027 a member of the group uses it without a download; a stranger cannot. The run stays private."""
    owner, member, stranger = other_user(OWNER, "027"), other_user(MEMBER, "027"), other_user(STRANGER, "022")
    run = owner.hpcq.folder / "runs" / "small"
    with start(owner, "submit", manifest(owner, MODEL_ONLY, cache)) as process:
        while not list(run.glob("attempts/*")):
            assert process.poll() is None
            time.sleep(0.1)
        process.terminate()
    assert modes(path for path in cache.rglob("*") if ".locks" not in path.parts) == {0o750, 0o640}
    assert modes([run, *run.rglob("*")]) <= {0o700, 0o600}
    hub.counts()
    assert f"model {MODEL}" in member.succeed("stage", manifest(member, MODEL_ONLY, cache)).err
    assert not any("resolve" in label or "cdn" in label for label in hub.counts())
    refused = stranger("stage", manifest(stranger, MODEL_ONLY, cache))
    assert refused.code == 3
    assert refused.err.startswith(f"{stranger.hpcq.folder}/manifest.toml:")
    assert f": paths.cache: {cache}/" in refused.err


def test_a_lock_of_another_user(hub: HubServer, cache: Path, other_user: NewUser) -> None:
    """The lock of a killed command does not stop a user with write permission; others get a message with the fix."""
    owner, member = other_user(OWNER, "022"), other_user(MEMBER, "022")
    hub.set(slow_s=10_000, only="cdn")
    with start(owner, "stage", manifest(owner, MODEL_ONLY, cache)) as process:
        while "GET cdn 200" not in hub.counts():
            assert process.poll() is None
            time.sleep(0.1)
        process.kill()
    hub.set(slow_s=0)
    refused = member("stage", manifest(member, MODEL_ONLY, cache))
    assert refused.code == 3
    assert f"{MODEL}@{hub.commit(MODEL)[:12]}: not staged, and you cannot write to {cache}/" in refused.err
    assert "let the owner stage it, or set another folder ([paths] cache, or HF_HOME)." in refused.err
    for path in (cache, *cache.rglob("*")):
        if path.is_dir():
            path.chmod(0o2775)
    assert "downloaded" in member.succeed("stage", manifest(member, MODEL_ONLY, cache)).err
