"""Where what is staged lies: caches that other programs filled, read-only homes, `paths.cache`, HF_HUB_CACHE."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

from hpcq.core.hub_cache import HubCache, RepoKind, hub_cache
from hpcq.stage.snapshot import is_staged
from tests.hub.lm_eval_results import LmEvalResults
from tests.hub.manifests import SMALL
from tests.hub.repositories import ARC, MODEL
from tests.hub.scores import Expected, check_responses, variants_of
from tests.hub.user import User
from tests.hub_server import HubServer

READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
"""Shell line that executes a command with a folder that root cannot write either."""

NOWHERE = "http://127.0.0.1:9"


def check_small_run(user: User, expected: Mapping[str, Expected]) -> None:
    """Check the responses of the small manifest's run."""
    results = user.hpcq.folder / "runs" / "small" / "results.h5"
    (variant,) = variants_of(results).values()
    check_responses(results, variant, expected["bf16"])


def test_a_cache_that_the_hubs_client_filled(
    lm_eval_home: LmEvalResults, user: User, hub: HubServer, expected: Mapping[str, Expected]
) -> None:
    """Offline, plan says which commits the cache has, and submit evaluates with the files that are there."""
    shutil.copytree(lm_eval_home.home, user.home, symlinks=True)
    assert not user.cache.prepared.exists()
    offline = dataclasses.replace(user, url=NOWHERE, variables={"HF_HUB_OFFLINE": "1"})
    manifest = user.hpcq.write(SMALL)
    said = " ".join(offline.succeed("plan", manifest).out.split())
    for name, kind in ((MODEL, "models"), (ARC, "datasets")):
        assert f"{name}: main is commit {hub.commit(name, kind)[:12]} (offline: 'main' is the commit of " in said
    offline.succeed("submit", manifest)
    check_small_run(user, expected)
    assert "(offline: 'main' is the commit of " in " ".join(offline.succeed("report", "small").out.split())


def test_an_empty_cache_offline(user: User) -> None:
    """With HF_HUB_OFFLINE and nothing in the cache, submit names the repository and the fix."""
    offline = dataclasses.replace(user, variables={"HF_HUB_OFFLINE": "1"})
    done = offline("submit", offline.hpcq.write(SMALL))
    assert done.code == 3
    assert f"{MODEL}@main: the cache {user.cache.hub} has no commit for 'main', and HF_HUB_OFFLINE is set" in done.err


def test_a_home_that_cannot_be_written(user: User, hub: HubServer) -> None:
    """Stage and submit refuse with the folder's name, and `paths.cache` is the way out."""
    user.home.mkdir()
    wrapper = ("unshare", "--mount", "sh", "-c", READ_ONLY, str(user.home))
    blocked = dataclasses.replace(user, hpcq=dataclasses.replace(user.hpcq, wrapper=wrapper))
    manifest = user.hpcq.write(SMALL)
    for command in ("stage", "submit"):
        done = blocked(command, manifest)
        assert done.code == 3, done.err
        assert str(blocked.home) in done.err.splitlines()[-1]
        assert done.err.splitlines()[-1].endswith(".")
    blocked.succeed("stage", manifest, "-O", "paths.cache=shared")
    assert is_staged(RepoKind.MODEL, MODEL, hub.commit(MODEL), hub_cache(user.hpcq.folder / "shared"))


def test_a_cache_in_the_manifest(user: User, tmp_path: Path, hub: HubServer, expected: Mapping[str, Expected]) -> None:
    """What is staged lies only in `paths.cache`. Without the hub, submit finds all of it there, and the commits."""
    folder = tmp_path / "elsewhere"
    manifest = user.hpcq.write(f'{SMALL}[paths]\ncache = "{folder}"\n')
    user.succeed("stage", manifest)
    assert is_staged(RepoKind.MODEL, MODEL, hub.commit(MODEL), hub_cache(folder))
    assert not (user.home / "hub").exists()
    user.succeed("submit", manifest, HF_ENDPOINT=NOWHERE, HPCQ_HUB_RETRY_S="0")
    check_small_run(user, expected)


def test_a_cache_of_the_hubs_client(user: User, tmp_path: Path, hub: HubServer) -> None:
    """With HF_HUB_CACHE, models lie only there, and a second command without the hub finds everything."""
    folder = tmp_path / "elsewhere"
    user = dataclasses.replace(user, variables={"HF_HUB_CACHE": str(folder)})
    manifest = user.hpcq.write(SMALL)
    user.succeed("stage", manifest)
    cache = HubCache(hub=folder, prepared=user.home / "hpcq")
    assert is_staged(RepoKind.MODEL, MODEL, hub.commit(MODEL), cache)
    assert not (user.home / "hub").exists()
    user.succeed("stage", manifest, HF_ENDPOINT=NOWHERE, HPCQ_HUB_RETRY_S="0")
