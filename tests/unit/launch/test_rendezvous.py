"""Rendezvous of the nodes of a unit: the parts that one host can test."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from hpcq.core.errors import UserInputError
from hpcq.launch.multinode import rendezvous


def free_port_with_ephemeral_range_from(lowest: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return a free port on a host with this ephemeral range, after a test that it can be used."""
    range_file = folder / "ip_local_port_range"
    range_file.write_text(f"{lowest}\t65535\n", encoding="ascii")
    monkeypatch.setattr(rendezvous, "_EPHEMERAL_RANGE_FILE", range_file)
    port = rendezvous.free_port()
    with socket.create_server(("", port)):
        return port


@pytest.mark.parametrize(("lowest", "is_below"), [(32768, True), (1024, False)])
def test_a_free_port_is_below_the_ephemeral_range_if_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lowest: int, *, is_below: bool
) -> None:
    """If the range starts at 1024, the lowest unprivileged port, the port is from the range."""
    assert (free_port_with_ephemeral_range_from(lowest, tmp_path, monkeypatch) < lowest) is is_below


def test_an_ephemeral_port_is_returned_if_all_ports_below_are_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only port below the range has a listener."""
    monkeypatch.setattr(rendezvous, "_MAX_PORTS_BELOW_EPHEMERAL", 1)
    with socket.create_server(("", 0)) as listener:
        used = listener.getsockname()[1]
        assert free_port_with_ephemeral_range_from(used + 1, tmp_path, monkeypatch) != used


def test_the_timeout_is_set_by_the_environment() -> None:
    """The default is 50 s. A value that is not a positive number is refused with the variable's name."""
    assert rendezvous.read_timeout_s({}) == rendezvous.read_timeout_s({rendezvous.TIMEOUT_VARIABLE: ""}) == 50
    assert rendezvous.read_timeout_s({rendezvous.TIMEOUT_VARIABLE: "0.5"}) == 0.5
    for value in ("5 min", "nan", "inf", "-1", "0"):
        with pytest.raises(UserInputError, match=rf"HPCQ_RENDEZVOUS_TIMEOUT_S = '{value}' must be a positive number"):
            rendezvous.read_timeout_s({rendezvous.TIMEOUT_VARIABLE: value})
