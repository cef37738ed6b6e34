"""The exceptions that a user may meet: each carries one sentence with the value, the place and the cure.

Raised where the cause is known, shown by the command line alone, which turns the class into an exit code.
"""

from __future__ import annotations

from collections.abc import Sequence


class HpcqError(Exception):
    """Root of the tree. `exit_code` is part of the command line's contract."""

    exit_code = 1


class UserInputError(HpcqError):
    """The manifest, the profile or an option is wrong; nothing has been started or written."""

    exit_code = 2


class ManifestError(UserInputError):
    """Everything that is wrong with a manifest, all at once: one sentence a problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class SetupError(HpcqError):
    """The machine or the cluster lacks something: no Slurm, no interpreter, a full disk, a missing model."""

    exit_code = 3


class StorageError(SetupError):
    """The file system refused: no room, no permission, read-only, stale."""


class RunIncomplete(HpcqError):
    """The run has failed or incomplete units."""


class SegmentCorruptError(HpcqError):
    """A segment cannot be trusted: cut short, altered, foreign, or of a later version. The merge sets it aside."""


class ProcessEnded(HpcqError):
    """A process without which the unit cannot go on has ended: an engine's worker, or the unit's part on another node.

    failure: the class of its end (`hpcq.core.failures.Failure`). node: where, in Slurm's words; '' where this process runs.
    """

    def __init__(self, message: str, *, failure: str, node: str = "") -> None:
        self.failure = failure
        self.node = node
        super().__init__(message)


class WorkFailed(HpcqError):
    """A worker could not do its unit for a reason that it can state in a sentence."""
