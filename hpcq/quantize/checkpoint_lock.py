"""Lock of a checkpoint: one worker at a time creates it, and the next takes over if its owner is gone.

The lock needs nothing but an atomic rename from the file system. `<checkpoint>.claim/` has one numbered folder per
claim; the highest number owns the lock. A claim is prepared under a temporary name and renamed to the next number. The
rename fails if a folder with content already has that name, so only one of several contenders succeeds. A worker never
moves or removes another's claim: a stale claim is superseded by creating the next-numbered one. All claims are removed
once the checkpoint exists; every claimant checks for the checkpoint after its claim.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from hpcq.core.attempts import AttemptRecord, utc_now
from hpcq.core.errors import SetupError
from hpcq.core.files import committed_folder, read_regular, temporary_path
from hpcq.core.frozen import dataclass
from hpcq.core.outcomes import Launcher, parse_value
from hpcq.core.processes import identity, is_alive
from hpcq.slurm.client import on_cluster
from hpcq.slurm.scontrol import show_job

CLAIM_SUFFIX = ".claim"
OWNER_FILE = "owner.json"
RELEASED = "released"
POLL_INTERVAL_S = 1.0
SLURM_QUERY_INTERVAL_S = 30.0
"""Minimum time between two queries for one job: a site may allow four calls per minute and user."""

_MAX_OWNER_BYTES = 1 << 16

_HOST_AND_BOOT_FIELDS = 2


@dataclass(frozen=True, kw_only=True)
class LockOwner:
    """Owner of a claim: the attempt that created it. Stored as JSON in the claim's folder.

    Attributes:
        unit: The unit's id.
        launcher: What started the attempt.
        node: Host name.
        process: Identity of the process (`hpcq.core.processes.identity`).
        job_id: Slurm's job id.
        restart: How many times Slurm had requeued the job.
        time: When the claim was created (UTC).
        token: Unique to this claim.
        cluster: Name of the job's Slurm cluster: clusters that share a file system have jobs of the same ids.
    """

    unit: str
    launcher: Launcher
    node: str
    process: str
    job_id: str
    restart: int
    time: str
    token: str
    cluster: str = ""

    @classmethod
    def from_attempt(cls, record: AttemptRecord) -> LockOwner:
        """Return the owner that `record`'s attempt would be, with a new token."""
        return cls(
            unit=record.unit,
            launcher=record.launcher,
            node=record.node,
            process=record.process or identity(os.getpid()) or "",
            job_id=record.job_id,
            restart=record.restart,
            time=utc_now(),
            token=secrets.token_hex(8),
            cluster=os.environ.get("SLURM_CLUSTER_NAME", ""),
        )


@contextlib.contextmanager
def lock_checkpoint(checkpoint: Path, me: LockOwner, report: Callable[[str], None]) -> Iterator[bool]:
    """Hold the lock of `checkpoint` in the block, after waiting for it if necessary.

    Args:
        checkpoint: The folder to create.
        me: This process, as the owner of the lock.
        report: Called with a message when waiting for another owner.

    Yields:
        True with the lock; False without it, because the checkpoint exists.

    Raises:
        StorageError: The disk is full, or the folder is not writable, read-only or stale.
    """
    with lock_result(checkpoint, me, report, is_complete=checkpoint.is_dir, noun="checkpoint") as has_lock:
        yield has_lock


@contextlib.contextmanager
def lock_result(
    path: Path, me: LockOwner, report: Callable[[str], None], *, is_complete: Callable[[], bool], noun: str
) -> Iterator[bool]:
    """Hold the lock of a file or folder that several processes may create, as `lock_checkpoint` does.

    Args:
        path: The file or folder.
        me: This process, as the owner of the lock.
        report: Called with a message when waiting for another owner.
        is_complete: Whether it has been created.
        noun: What it is, for the message.

    Yields:
        True with the lock; False without it, because the result is complete.

    Raises:
        StorageError: The disk is full, or the folder is not writable, read-only or stale.
    """
    folder = path.with_name(path.name + CLAIM_SUFFIX)
    mine = _acquire(folder, me, is_complete, lambda owner: report(_waiting_message(owner, folder, noun)))
    try:
        yield mine is not None
    finally:
        # A claim that cannot be released expires with its process.
        with contextlib.suppress(OSError):
            if is_complete():
                _remove_claims(folder)
            elif mine:
                (mine / RELEASED).touch()


def _acquire(
    folder: Path, me: LockOwner, is_complete: Callable[[], bool], report: Callable[[LockOwner], None]
) -> Path | None:
    """Return the folder of the claim that was created; None if the result is complete."""
    liveness, reported = _OwnerLiveness(me), ""
    while not is_complete():
        latest = _latest_number(folder)
        owner = _read_owner(folder / str(latest))
        if owner is None or liveness.is_gone(owner):
            mine = _create_claim(folder / str(latest + 1), me)
            if mine and not is_complete():
                return mine
            continue  # another worker was faster, or has just finished
        if reported != owner.token:
            report(owner)
            reported = owner.token
        time.sleep(POLL_INTERVAL_S)
    return None


def _latest_number(folder: Path) -> int:
    try:
        return max((int(item.name) for item in folder.iterdir() if item.name.isdecimal()), default=0)
    except FileNotFoundError:
        return 0


def _read_owner(claim: Path) -> LockOwner | None:
    """Return the owner of a claim; None if the claim was released, is missing, or cannot be parsed."""
    try:
        content = json.loads(read_regular(claim / OWNER_FILE, _MAX_OWNER_BYTES))
        fields = {"cluster": "", **content}
        fields = {key: fields[key] for key in LockOwner.__dataclass_fields__}
        owner = LockOwner(**{**fields, "launcher": parse_value(Launcher, fields["launcher"])})
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return None if (claim / RELEASED).exists() else owner


def _create_claim(claim: Path, me: LockOwner) -> Path | None:
    """Create a claim with its owner, durably; return None if another worker was faster."""
    # The folder of all claims is removed once the checkpoint exists, possibly between two of our steps.
    with contextlib.suppress(FileNotFoundError), committed_folder(claim) as temporary:
        (temporary / OWNER_FILE).write_text(json.dumps(asdict(me), indent=1) + "\n", encoding="utf-8")
    # Read it back instead of trusting rename's result: over NFS a reply may be lost and the call repeated.
    found = _read_owner(claim)
    return claim if found and found.token == me.token else None


def _remove_claims(folder: Path) -> None:
    """Remove all claims atomically, so that no lower number is seen without the higher ones."""
    aside = temporary_path(folder)
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _waiting_message(owner: LockOwner, folder: Path, noun: str) -> str:
    if owner.launcher is Launcher.SLURM:
        return f"waiting for job {owner.job_id} on {owner.node}, which is creating this {noun}"
    return (
        f"waiting for {owner.node} (process {owner.process.split()[-2:][0]}), which has been creating this {noun} "
        f"since {owner.time}; if that host is gone, remove {folder}"
    )


class _OwnerLiveness:
    """Whether the owner of a claim is gone, according to this host's kernel (processes) or to Slurm (jobs)."""

    def __init__(self, me: LockOwner) -> None:
        self._me = me
        self._last_query: tuple[str, float] = ("", 0.0)

    def is_gone(self, owner: LockOwner) -> bool:
        """Return True only if it is certain."""
        me = self._me
        if owner.process == me.process:
            return True  # an earlier claim of this process, which it could not release
        is_own_job = owner.launcher is me.launcher is Launcher.SLURM and owner.job_id == me.job_id
        if is_own_job and owner.cluster == me.cluster and owner.restart < me.restart:
            return True
        there, here = (who.process.split()[:_HOST_AND_BOOT_FIELDS] for who in (owner, me))
        if there == here:
            return not is_alive(owner.process)
        if owner.launcher is Launcher.SLURM:
            return self._is_job_over(owner)
        return there[:1] == here[:1]  # a process of this host before its reboot

    def _is_job_over(self, owner: LockOwner) -> bool:
        token, queried_s = self._last_query
        if token == owner.token and time.monotonic() - queried_s < SLURM_QUERY_INTERVAL_S:
            return False
        with on_cluster(owner.cluster or None):
            is_over = is_job_over(owner.job_id, owner.restart)
        self._last_query = (owner.token, time.monotonic())
        return is_over


def is_job_over(job_id: str, restart: int) -> bool:
    """Whether Slurm reports that the job's run number `restart` has ended; False if Slurm does not respond."""
    try:
        job = show_job(job_id)
    except SetupError:
        return False
    # Slurm purges a job MinJobAge (300 s by default) after its end, not earlier.
    return job is None or not job.state.may_have_process or job.restarts > restart
