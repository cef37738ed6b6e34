"""Versions of the distributions in this environment, compared with those that a unit's address names.

The tools are not imported. The local suffix of a build is ignored: torch 2.13.0+cpu counts as 2.13.0.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from hpcq.core.errors import SetupError
from hpcq.core.work import Versions


def installed_versions(distributions: Iterable[str]) -> dict[str, str]:
    """Return the versions of the installed ones of `distributions`, without local suffixes such as '+cpu'."""
    versions = {}
    for name in distributions:
        try:
            versions[name] = _without_suffix(version(name))
        except PackageNotFoundError:
            continue
    return versions


def check_versions(planned: Versions) -> None:
    """Check that this interpreter has exactly the planned versions.

    Raises:
        SetupError: A distribution is missing or has another version.
    """
    installed = installed_versions(name for name, _ in planned)
    for name, wanted in planned:
        found = installed.get(name, "missing")
        if found != _without_suffix(wanted):
            raise SetupError(
                f"{sys.executable}: {name} is {found}, but the plan requires {wanted}. Rebuild the environment from"
                " its lock (`make environments`), or submit the manifest again to plan with the installed version."
            )


def _without_suffix(text: str) -> str:
    return text.partition("+")[0]
