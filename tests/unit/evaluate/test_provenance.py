"""What a segment tells of its making, and the check that the tools are the planned ones."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

import pytest

from hpcq.attempts import Attempt
from hpcq.errors import EnvironmentFault
from hpcq.evaluate.provenance import provenance_of, verify_versions
from hpcq.units import EvaluateWork

H5PY = importlib.metadata.version("h5py")


def test_the_planned_versions_pass() -> None:
    """A tool of the planned version is accepted, with or without the suffix of its build."""
    verify_versions((("h5py", H5PY),))
    verify_versions((("h5py", f"{H5PY}+cpu"),))


@pytest.mark.parametrize(("name", "found"), [("h5py", H5PY), ("no-such-tool", "missing")])
def test_other_versions_are_refused(name: str, found: str) -> None:
    """A tool of another version, or none, is one sentence with both versions and the cure."""
    with pytest.raises(EnvironmentFault, match=rf"{name} is {found} where the plan says 0\.0\.1: .*make environments"):
        verify_versions(((name, "0.0.1"),))


def test_the_node_is_slurms(
    make_work: Callable[..., EvaluateWork], make_attempt: Callable[[str], Attempt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several Slurm nodes may share a host name: the node that a segment names is Slurm's."""
    monkeypatch.setenv("SLURMD_NODENAME", "h100-2")

    assert provenance_of(make_work(), make_attempt("evaluate.x"), {})["node"] == "h100-2"
