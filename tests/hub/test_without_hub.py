"""Finished runs without their cache and without the hub."""

from __future__ import annotations

import shutil

from tests.hub.manifests import SMALL
from tests.hub.repositories import MODEL
from tests.hub.user import User
from tests.hub_server import HubServer

NO_HUB = {"HF_ENDPOINT": "http://127.0.0.1:9", "HPCQ_HUB_RETRY_S": "1"}
"""A port that nothing listens on."""


def test_a_finished_run_needs_neither_cache_nor_hub(user: User, hub: HubServer) -> None:
    """Status, report, merge and resume of a finished run read its folder alone; what is missing then is named."""
    manifest = user.hpcq.write(SMALL)
    user.succeed("submit", manifest)
    report = user.succeed("report", "small").out
    shutil.rmtree(user.home)
    hub.counts()

    assert user.succeed("report", manifest, **NO_HUB).out == report
    assert user.succeed("status", "small", "--json", **NO_HUB).document["state"] == "done"
    assert report in user.succeed("resume", "small", **NO_HUB).out
    merged = user.succeed("merge", "small", "--json", **NO_HUB)
    assert (merged.document["missing"], merged.document["found"]) == (0, merged.document["expected"])
    assert "arc_challenge: the benchmark data are not on this file system: the existing results" in merged.err
    assert hub.counts() == {}
    assert not user.home.exists()

    run = user.hpcq.folder / "runs" / "small"
    (segments,) = (run / "segments").glob("evaluate.*")
    shutil.rmtree(segments)
    (run / "results.h5").unlink()
    merging = user("merge", "small", **NO_HUB)
    assert merging.code == 3
    assert "a merge needs them for the scores: run `hpcq stage " in merging.err
    resuming = user("resume", "small", **NO_HUB)
    assert resuming.code == 3
    assert f"{MODEL}@{hub.commit(MODEL)[:12]}: it is not in {user.cache.hub} and has to be staged, but" in resuming.err

    user.succeed("resume", "small")
    assert user.succeed("report", "small").out.splitlines()[0] == report.splitlines()[0]
