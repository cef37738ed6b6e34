"""Ctrl-C and SIGTERM while a command waits for the hub, whose client has a read timeout of minutes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from hpcq.core.hub_cache import RepoKind
from hpcq.stage.snapshot import is_staged
from tests.hub.manifests import MODEL_ONLY, SMALL
from tests.hub.repositories import ARC, MODEL
from tests.hub.user import User
from tests.hub_server import HubServer

READ_TIMEOUT_S = 300
EXIT_S = 60
"""Limit for the exit on a loaded machine; it usually takes 0.1 s."""

INTERRUPTED = "Interrupted. Complete results and files are kept; run the command again to continue."
NEVER_S = 10_000

WAITS = {
    "the first answer": ("submit", {"delay_s": NEVER_S, "only": "api/models"}, "delayed", signal.SIGTERM),
    "the middle of a file": ("submit", {"slow_s": NEVER_S, "only": "cdn"}, "GET cdn 200", signal.SIGINT),
    "a retry": ("stage", {"fail_rate": 1, "retry_after": 200, "only": "cdn"}, "GET cdn 500", signal.SIGINT),
    "a data set": ("stage", {"delay_s": NEVER_S, "only": f"datasets/{ARC}/resolve"}, "delayed", signal.SIGTERM),
}


def start(user: User, command: str, manifest: Path) -> subprocess.Popen[str]:
    """Start a command of hpcq."""
    return subprocess.Popen(
        [user.hpcq.python, "-m", "hpcq", command, manifest],
        cwd=user.hpcq.folder,
        env={**os.environ, **user.environment(), "HF_HUB_DOWNLOAD_TIMEOUT": str(READ_TIMEOUT_S)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def interrupt(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal; the command exits with one sentence."""
    process.send_signal(number)
    _, errors = process.communicate(timeout=EXIT_S)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == INTERRUPTED
    assert "Traceback" not in errors


def wait_for_requests(hub: HubServer, labels: set[str], process: subprocess.Popen[str]) -> None:
    """Wait until the hub has received these requests."""
    while labels:
        labels = labels - hub.counts().keys()
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.parametrize(("command", "options", "label", "number"), WAITS.values(), ids=WAITS)
def test_a_signal_ends_a_command_that_waits(
    user: User, hub: HubServer, command: str, options: dict[str, object], label: str, number: signal.Signals
) -> None:
    """Ctrl-C and SIGTERM end the command at once: before an answer, in a file, between two requests, in a data set."""
    hub.set(**options)
    process = start(user, command, user.hpcq.write(SMALL))
    wait_for_requests(hub, {label}, process)
    interrupt(process, number)
    assert not [*user.hpcq.folder.glob("runs/*/plan.json")]


def test_an_interrupted_download_continues(user: User, hub: HubServer) -> None:
    """The next command takes the lock of the interrupted one, and downloads only what is not complete."""
    hub.set(slow_s=NEVER_S, only="cdn")
    manifest = user.hpcq.write(MODEL_ONLY)
    process = start(user, "stage", manifest)
    wait_for_requests(hub, {"GET cdn 200"}, process)
    interrupt(process, signal.SIGINT)
    hub.set(slow_s=0)
    hub.counts()
    user.succeed("stage", manifest)
    assert is_staged(RepoKind.MODEL, MODEL, hub.commit(MODEL), user.cache)
    assert hub.counts()["GET cdn 200"] == 2


def test_a_signal_ends_a_download_of_hf_xet(user: User, hub: HubServer) -> None:
    """A server of hf-xet that does not respond does not hold the command."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub.set(xet=f"http://127.0.0.1:{silent.getsockname()[1]}")
        process = start(user, "stage", user.hpcq.write(MODEL_ONLY))
        connection, _ = silent.accept()
        with connection:
            interrupt(process, signal.SIGINT)
