"""Calls of Slurm's clients to which the controller does not respond."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hpcq.core.environments import PACKAGE_VARIABLE
from hpcq.core.errors import SetupError
from hpcq.slurm import client
from hpcq.slurm.client import SlurmUnavailableError, cluster_options, on_cluster, patience, run_client

FAILS = """\
#!/usr/bin/env bash
echo >>"$0.calls"
if [ "$(wc -l <"$0.calls")" -gt 4 ]; then echo answer; exit; fi
echo "error: Unable to contact slurm controller (connect failure)" >&2
exit 1
"""


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A client whose first four calls fail."""
    path = tmp_path / "squeue"
    path.write_text(FAILS)
    path.chmod(0o700)
    monkeypatch.setattr(client, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(client, "_SECOND_CALL_S", 0.01)
    return str(path)


def test_calls_are_repeated_within_the_patience(squeue: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A line says so; without patience, the second failure in a row is an error."""
    with pytest.raises(SlurmUnavailableError, match="Unable to contact"):
        run_client(squeue)
    with patience(60.0):
        assert run_client(squeue) == "answer\n"
    assert "The next call is in 0.01 s." in capsys.readouterr().err


@pytest.mark.parametrize(
    "message",
    [
        "slurm_load_jobs error: Protocol authentication error",
        "Submitting failed: Invalid authentication credential",
        'error: Munge encode failed: Failed to access "/run/munge/munge.socket.2"\nsqueue: error: authentication',
    ],
)
def test_a_failed_authentication_is_repeated(tmp_path: Path, message: str) -> None:
    """Munge of a login node or of the controller's host restarts, or is busy."""
    with pytest.raises(SlurmUnavailableError):
        run_client(str(client_that_fails(tmp_path, message)))


def test_control_characters_of_a_message_do_not_reach_the_terminal(tmp_path: Path) -> None:
    """A wrapper or a submit filter may color its messages; a job's name may contain anything."""
    with pytest.raises(SetupError, match=r"failed: it is \[31mred$"):
        run_client(str(client_that_fails(tmp_path, "it\tis \x1b[31mred")))


def client_that_fails(folder: Path, message: str) -> Path:
    """Return a client that prints a message and ends with 1."""
    path = folder / "client"
    (folder / "message").write_text(message)
    path.write_text(f'#!/usr/bin/env bash\ncat "{folder}/message" >&2\nexit 1\n')
    path.chmod(0o700)
    return path


@pytest.mark.parametrize(("is_job", "options"), [(False, ("--clusters=a",)), (True, ())])
def test_only_a_job_of_hpcq_trusts_its_cluster_name(
    monkeypatch: pytest.MonkeyPatch, *, is_job: bool, options: tuple[str, ...]
) -> None:
    """Observed: salloc for cluster a sets SLURM_CLUSTER_NAME=a in a shell on the login node of cluster b."""
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "a")
    monkeypatch.delenv(PACKAGE_VARIABLE, raising=False)
    if is_job:
        monkeypatch.setenv(PACKAGE_VARIABLE, "1f")
    with on_cluster("a"):
        assert cluster_options() == options
    with on_cluster("b"):
        assert cluster_options() == ("--clusters=b",)


def test_an_error_of_the_request_is_not_repeated() -> None:
    """Only the controller's absence is."""
    began_s = time.monotonic()
    with pytest.raises(SetupError) as error, patience(60.0):
        run_client("ls", "/no/such/file")
    assert not isinstance(error.value, SlurmUnavailableError)
    assert time.monotonic() - began_s < 30.0
