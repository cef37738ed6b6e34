"""File modes of projects' folders elsewhere: default ACLs, setgid, any umask."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.command_line import REHEARSAL, Hpcq
from tests.slurm.cluster import VirtualCluster

FOLDERS = {
    "default ACL": ["setfacl", "--default", "--modify=user::rwx,group::rwx,group:daemon:rwx,other::rx"],
    "setgid": ["chmod", "2770"],
}

NEVER_READ = ("*_log.out", "*_log.err", ".lock")
"""Files of Slurm whose content no job or command uses; their folder is private."""


@pytest.mark.parametrize(("kind", "umask"), [("default ACL", 0o022), ("setgid", 0o000)])
def test_a_run_in_a_shared_folder_is_private_and_complete(
    cluster: VirtualCluster, core_python: Path, tmp_path: Path, kind: str, umask: int
) -> None:
    """Observed: with a default ACL, which files inherit, hpcq refused its own files in every job."""
    project = tmp_path / "project"
    project.mkdir()
    subprocess.run([*FOLDERS[kind], str(project)], check=True)
    cluster.write_profile({"core": str(core_python), "transformers": str(core_python)})
    hpcq = Hpcq(python=core_python, folder=project)
    manifest = hpcq.write(REHEARSAL)
    before = os.umask(umask)
    try:
        done = hpcq("submit", manifest, "-O", f"cluster.profile={cluster.profile}", "--wait")
    finally:
        os.umask(before)
    assert done.code == 0, done.err
    written = (project / "runs", project / "logs", *project.glob("runs/**/*"), *project.glob("logs/**/*"))
    read_again = [path for path in written if not path.is_symlink() and not any(map(path.match, NEVER_READ))]
    assert [path for path in read_again if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)] == []
    assert any(path.suffix == ".jsonl" for path in read_again)
