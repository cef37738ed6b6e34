"""Names of compacted files. They say how many responses a folder has, without HDF5."""

from __future__ import annotations

import re

from hpcq.core.frozen import dataclass

_NAME = re.compile(
    r"(?P<first>\d{4,}-\d{6,})-(?P<last>\d{4,}-\d{6,})-(?P<segments>\d+)-(?P<token>[0-9a-f]{16})-(?P<rows>\d+)\.h5"
)

Position = tuple[int, int]
"""Attempt and sequence of a segment."""


@dataclass(frozen=True, kw_only=True)
class CompactedName:
    """Name of a compacted file: `<first>-<last>-<segments>-<token>-<rows>.h5`.

    Attributes:
        first: Position of its first segment.
        last: Position of its last segment. Segments in between may be in other files.
        segments: Number of its segments.
        token: First digits of the SHA-256 of the content.
        rows: Number of responses.
    """

    first: Position
    last: Position
    segments: int
    token: str
    rows: int

    def __str__(self) -> str:
        first, last = (f"{attempt:04d}-{sequence:06d}" for attempt, sequence in (self.first, self.last))
        return f"{first}-{last}-{self.segments}-{self.token}-{self.rows}.h5"

    @classmethod
    def parse(cls, name: str) -> CompactedName | None:
        """Parse `name`; return None if it is not the name of a compacted file."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        return cls(
            first=_position(match["first"]),
            last=_position(match["last"]),
            segments=int(match["segments"]),
            token=match["token"],
            rows=int(match["rows"]),
        )


def _position(text: str) -> Position:
    attempt, _, sequence = text.partition("-")
    return int(attempt), int(sequence)
