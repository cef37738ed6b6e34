"""Limit on submitted jobs from Slurm's accounting."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcq.manifest.profiles import load_profile
from hpcq.manifest.templates import draft_profile
from hpcq.slurm.sacctmgr import max_submitted_jobs
from hpcq.slurm.sinfo import group_nodes, parse_nodes
from tests.slurm.sites import enter_site

NODE = "n1|gpu|gpu:h100:8|96|1031000|h100|1-00:00:00|1-infinite|up|idle"


def test_the_smallest_limit_is_written_to_a_new_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Limits of associations and of their default QOS count; those of other QOS do not."""
    enter_site(monkeypatch, "accounting")
    limit = max_submitted_jobs("here")
    assert limit == 5
    draft = tmp_path / "draft.toml"
    draft.write_text(draft_profile("here", group_nodes(parse_nodes(NODE)), max_submitted_jobs=limit))
    assert load_profile("draft.toml", tmp_path).slurm.max_submitted_jobs == limit
    assert "max_submitted_jobs = 5 # CHECK" in draft.read_text()


def test_without_accounting_there_is_no_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """sacctmgr is missing or fails at sites without slurmdbd: the profile has no limit."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert max_submitted_jobs("here") is None
    (tmp_path / "sacctmgr").write_text(
        "#!/bin/sh\necho 'You are not running a supported accounting_storage plugin'\nexit 1"
    )
    (tmp_path / "sacctmgr").chmod(0o700)
    assert max_submitted_jobs("here") is None
