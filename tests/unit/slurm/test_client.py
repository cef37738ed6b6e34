"""Calls of Slurm's clients that the controller does not answer."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hpcq.core.errors import SetupError
from hpcq.slurm import client
from hpcq.slurm.client import SlurmUnavailableError, patience, run_client

FAILS_TWICE = """\
#!/usr/bin/env bash
echo >>"$0.calls"
if [ "$(wc -l <"$0.calls")" -gt 2 ]; then echo answer; exit; fi
echo "error: Unable to contact slurm controller (connect failure)" >&2
exit 1
"""


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A client whose first two calls fail."""
    path = tmp_path / "squeue"
    path.write_text(FAILS_TWICE)
    path.chmod(0o700)
    monkeypatch.setattr(client, "_FIRST_PAUSE_S", 0.01)
    return str(path)


def test_calls_are_repeated_within_the_patience(squeue: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A line says so; without patience, the first failure is an error."""
    with pytest.raises(SlurmUnavailableError, match="Unable to contact"):
        run_client(squeue)
    with patience(60.0):
        assert run_client(squeue) == "answer\n"
    assert "The next call is in 0.01 s." in capsys.readouterr().err


def test_an_error_of_the_request_is_not_repeated() -> None:
    """Only the controller's absence is."""
    began_s = time.monotonic()
    with pytest.raises(SetupError) as error, patience(60.0):
        run_client("ls", "/no/such/file")
    assert not isinstance(error.value, SlurmUnavailableError)
    assert time.monotonic() - began_s < 30.0
