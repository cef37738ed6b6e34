"""Check of the installed versions against the plan."""

from __future__ import annotations

import importlib.metadata

import pytest

from hpcq.core.errors import SetupError
from hpcq.core.versions import check_versions

H5PY = importlib.metadata.version("h5py")


def test_the_planned_versions_pass() -> None:
    """A tool of the planned version is accepted, with or without a local suffix of its build."""
    check_versions((("h5py", H5PY),))
    check_versions((("h5py", f"{H5PY}+cpu"),))


@pytest.mark.parametrize(("name", "found"), [("h5py", H5PY), ("no-such-tool", "missing")])
def test_other_versions_are_refused(name: str, found: str) -> None:
    """A tool of another version, or a missing one, is refused with both versions and the fix."""
    with pytest.raises(SetupError, match=rf"{name} is {found}, but the plan requires 0\.0\.1\. .*make environments"):
        check_versions(((name, "0.0.1"),))
