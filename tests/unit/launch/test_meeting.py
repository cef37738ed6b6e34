"""How the nodes of a unit find each other, as far as one host shows it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from hpcq.core.errors import UserInputError
from hpcq.launch.multinode import rendezvous


def port_where_the_kernel_s_begin_at(least: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """A free port on such a host; it can be listened at."""
    told = folder / "ip_local_port_range"
    told.write_text(f"{least}\t65535\n", encoding="ascii")
    monkeypatch.setattr(rendezvous, "_EPHEMERAL", told)
    port = rendezvous.free_port()
    with socket.create_server(("", port)):
        return port


@pytest.mark.parametrize(("least", "is_below"), [(32768, True), (1024, False)])
def test_a_free_port_is_below_the_kernel_s_own_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int, *, is_below: bool
) -> None:
    """Where the kernel's own begin at 1024, the least that anybody may take, it is one of them."""
    assert (port_where_the_kernel_s_begin_at(least, tmp_path, monkeypatch) < least) is is_below


def test_where_all_ports_below_the_kernel_s_own_are_taken_one_of_these_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One port is below, and somebody listens there."""
    monkeypatch.setattr(rendezvous, "_PORTS_BELOW_EPHEMERAL", 1)
    with socket.create_server(("", 0)) as taken:
        held = taken.getsockname()[1]
        assert port_where_the_kernel_s_begin_at(held + 1, tmp_path, monkeypatch) != held


def test_the_deadline_is_what_the_environment_says() -> None:
    """Five minutes where it says nothing; what is no time is refused with the variable's name."""
    assert rendezvous.deadline_s({}) == rendezvous.deadline_s({rendezvous.DEADLINE_VARIABLE: ""}) == 50
    assert rendezvous.deadline_s({rendezvous.DEADLINE_VARIABLE: "0.5"}) == 0.5
    for told in ("5 min", "nan", "inf", "-1", "0"):
        with pytest.raises(UserInputError, match=rf"HPCQ_MEETING_SECONDS = '{told}' is no number of seconds"):
            rendezvous.deadline_s({rendezvous.DEADLINE_VARIABLE: told})
