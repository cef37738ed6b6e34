"""Calibration text from a data set on the hub: its description in one string, and the path of its file."""

from __future__ import annotations

import re
from pathlib import Path

from hpcq.core.errors import UserInputError
from hpcq.core.frozen import dataclass
from hpcq.core.hub_cache import HubCache

DEFAULT_CONFIG = "default"
"""Configuration of a data set that defines none."""

RANDOM_TOKENS = "random-tokens"
"""Name and source of a calibration set of random tokens, which needs no text."""

_SOURCE = re.compile(r"(?P<repo_id>[^@]+)@(?P<commit>[0-9a-f]+)/(?P<config>[^/]+)/(?P<split>[^/]+)/(?P<column>[^/]+)")


@dataclass(frozen=True, kw_only=True)
class CalibrationSource:
    """A column of texts in a data set on the hub.

    Attributes:
        repo_id: The data set's repository.
        commit: Its commit, or the digest of a mirrored data set.
        config: Configuration of the data set; DEFAULT_CONFIG if it defines none.
        split: Split of the configuration.
        column: Column with the texts.
    """

    repo_id: str
    commit: str
    config: str = DEFAULT_CONFIG
    split: str
    column: str

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.commit}/{self.config}/{self.split}/{self.column}"

    @property
    def is_pinned(self) -> bool:
        """Whether the commit is known; otherwise it is the name of a branch or tag."""
        return _SOURCE.fullmatch(str(self)) is not None

    def path(self, cache: HubCache) -> Path:
        """Return the file of the staged text."""
        return cache.calibration(self.repo_id, self.commit, (self.config, self.split, self.column))


def parse_calibration_source(text: str) -> CalibrationSource:
    """Return the source that `Calibration.source` describes.

    Raises:
        UserInputError: The text is malformed.
    """
    match = _SOURCE.fullmatch(text)
    if match is None:
        raise UserInputError(f"'{text}' is not '<repository>@<commit>/<config>/<split>/<column>'.")
    return CalibrationSource(**match.groupdict())
