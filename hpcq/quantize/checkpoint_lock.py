"""Who may make a checkpoint: one worker at a time, and another as soon as there is evidence that the first is gone.

Knows processes, and how Slurm is asked for a job; must not know what is made. Works where rename is atomic and nothing
else is. `<checkpoint>.claim/` holds a folder for each claim that was ever made, numbered; the highest counts. A claim
is made aside and renamed to the next number, which fails where a folder with content has that name already. Nobody
moves or removes another's claim: to take over from the dead is to make the claim with the next number, and of many
contenders one succeeds. All claims go when the checkpoint is there, which every claimant looks for last.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from hpcq.core.attempts import AttemptRecord, now
from hpcq.core.files import committed_folder, temporary_beside
from hpcq.core.processes import identity, is_alive

CLAIM_SUFFIX = ".claim"
OWNER_FILE = "owner.json"
RELEASED = "released"
POLL_INTERVAL_S = 1.0
SLURM_INTERVAL_S = 30.0
"""Between two questions about one job: a site may allow a user four calls a minute, and many workers may wait."""

CLIENT_TIMEOUT_S = 30.0
_AT_WORK = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING", "CONFIGURING")
_HOST_AND_BOOT = 2


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who has made a claim. process: `hpcq.core.processes.identity`. token: tells this claim from all others."""

    unit: str
    launcher: str
    node: str
    process: str
    job_id: str
    restart: int
    time: str
    token: str

    @classmethod
    def of(cls, record: AttemptRecord) -> Owner:
        """The claimant that an attempt is."""
        return cls(
            unit=record.unit,
            launcher=record.launcher,
            node=record.node,
            process=record.process or identity(os.getpid()) or "",
            job_id=record.job_id,
            restart=record.restart,
            time=now(),
            token=secrets.token_hex(8),
        )


@contextlib.contextmanager
def claimed(checkpoint: Path, me: Owner, say: Callable[[str], None]) -> Iterator[bool]:
    """Wait until `checkpoint` may be made, and hold that right in the block; False where it is there already.

    `say` is told for whom one waits.

    Raises:
        StorageError: no room, no permission, read-only or stale.
    """
    folder = checkpoint.with_name(checkpoint.name + CLAIM_SUFFIX)
    mine = _wait(checkpoint, folder, me, say)
    try:
        yield mine is not None
    finally:
        # A claim that cannot be given back expires with its process.
        with contextlib.suppress(OSError):
            if checkpoint.is_dir():
                _remove(folder)
            elif mine:
                (mine / RELEASED).touch()


def _wait(checkpoint: Path, folder: Path, me: Owner, say: Callable[[str], None]) -> Path | None:
    """The folder of a claim of one's own; None: the checkpoint is there."""
    evidence, told = _Evidence(me), ""
    while not checkpoint.is_dir():
        latest = _latest(folder)
        owner = _owner(folder / str(latest))
        if owner is None or evidence.is_over(owner):
            mine = _make(folder / str(latest + 1), me)
            if mine and not checkpoint.is_dir():
                return mine
            continue  # another was faster, or has just finished
        if told != owner.token:
            say(_waiting_for(owner, folder))
            told = owner.token
        time.sleep(POLL_INTERVAL_S)
    return None


def _latest(folder: Path) -> int:
    try:
        return max((int(item.name) for item in folder.iterdir() if item.name.isdecimal()), default=0)
    except FileNotFoundError:
        return 0


def _owner(claim: Path) -> Owner | None:
    """None: nobody's, for it was given back, or is no longer there, or cannot be understood."""
    try:
        content = json.loads((claim / OWNER_FILE).read_text(encoding="utf-8"))
        owner = Owner(**{key: content[key] for key in Owner.__dataclass_fields__})
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return None if (claim / RELEASED).exists() else owner


def _make(claim: Path, me: Owner) -> Path | None:
    """Make the claim, durable with its owner in it; None where another was faster."""
    # The folder of claims goes when the checkpoint is there, perhaps between two steps of ours.
    with contextlib.suppress(FileNotFoundError), committed_folder(claim) as temporary:
        (temporary / OWNER_FILE).write_text(json.dumps(asdict(me), indent=1) + "\n", encoding="utf-8")
    # What is there decides, not what rename said: over NFS an answer may be lost and the call repeated.
    found = _owner(claim)
    return claim if found and found.token == me.token else None


def _remove(folder: Path) -> None:
    """All claims at once, so that no lower number is seen without the higher."""
    aside = temporary_beside(folder)
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _waiting_for(owner: Owner, folder: Path) -> str:
    if owner.launcher == "slurm":
        return f"waiting for job {owner.job_id} on {owner.node}, which makes this checkpoint"
    return (
        f"waiting for {owner.node} (process {owner.process.split()[-2:][0]}), which makes this checkpoint since "
        f"{owner.time}; if that machine is gone, remove {folder}"
    )


class _Evidence:
    """Whether the owner of a claim is gone: this host's kernel knows of its processes, Slurm of its jobs."""

    def __init__(self, me: Owner) -> None:
        self._me = me
        self._asked: tuple[str, float] = ("", 0.0)

    def is_over(self, owner: Owner) -> bool:
        """True only where it is known."""
        me = self._me
        if owner.process == me.process:
            return True  # an earlier try of this very process, which could not give its claim back
        if owner.launcher == me.launcher == "slurm" and owner.job_id == me.job_id and owner.restart < me.restart:
            return True
        there, here = (who.process.split()[:_HOST_AND_BOOT] for who in (owner, me))
        if there == here:
            return not is_alive(owner.process)
        if owner.launcher == "slurm":
            return self._job_is_over(owner)
        return there[:1] == here[:1]  # a process of this host, before it was started anew

    def _job_is_over(self, owner: Owner) -> bool:
        token, moment = self._asked
        if token == owner.token and time.monotonic() - moment < SLURM_INTERVAL_S:
            return False
        over = job_is_over(owner.job_id, owner.restart)
        self._asked = (owner.token, time.monotonic())
        return over


def job_is_over(job_id: str, restart: int) -> bool:
    """Whether Slurm says that a job's run number `restart` has ended; False where it says nothing."""
    command = ["scontrol", "--oneliner", "show", "job", job_id]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=CLIENT_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    if told.returncode:
        # Slurm forgets a job MinJobAge after its end (300 s by default), and no sooner.
        return "Invalid job id" in told.stderr
    state = re.search(r"\bJobState=(\w+)", told.stdout)
    restarts = re.search(r"\bRestarts=(\d+)", told.stdout)
    return (state is not None and state[1] not in _AT_WORK) or (restarts is not None and int(restarts[1]) > restart)
