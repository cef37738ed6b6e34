"""Exceptions that a user may see: each message has the value, the place and the fix in one sentence.

They are raised where the cause is known. Only the command line prints them and turns the class into an exit code.
"""

from __future__ import annotations

from collections.abc import Sequence


class HpcqError(Exception):
    """Base class. `exit_code` is part of the command line's contract."""

    exit_code = 1


class UserInputError(HpcqError):
    """The manifest, the profile or an option is invalid; nothing was started or written."""

    exit_code = 2


class ManifestError(UserInputError):
    """All problems of a manifest at once, one sentence per problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class KeyedInputError(UserInputError):
    """Invalid value of one key of the manifest, raised by code that does not have the manifest.

    Attributes:
        key: The key, such as 'calibration.split'.
        sentence: What is wrong with its value.
    """

    def __init__(self, key: str, sentence: str) -> None:
        self.key = key
        self.sentence = sentence
        super().__init__(f"{key}: {sentence}")


class SetupError(HpcqError):
    """Something is missing on the machine or the cluster: Slurm, an interpreter, disk space, a model."""

    exit_code = 3


class JobLimitError(SetupError):
    """The limit on submitted jobs is reached: more can be submitted when some have ended."""


class StorageError(SetupError):
    """The file system refused an operation: no space, no permission, read-only, stale file handle."""


class ConnectionLostError(SetupError):
    """A server does not respond, or not without errors, after all retries."""


class RunIncompleteError(HpcqError):
    """The run has failed or incomplete units."""


class SegmentCorruptError(HpcqError):
    """A segment cannot be trusted: truncated, altered, foreign, or of a later version. The merge sets it aside."""


class SegmentVanishedError(SegmentCorruptError):
    """A file of segments was listed and no longer exists: it was compacted, or deleted."""


class ProcessDiedError(HpcqError):
    """A process that the unit needs has exited: an engine's worker, or the unit's process on another node.

    Attributes:
        failure: Class of the failure (`hpcq.core.failures.Failure`).
        node: Slurm's name of the node on which it ran; '' for the node of this process.
        is_secondary: Whether it exited only because another process had.
    """

    def __init__(self, message: str, *, failure: str, node: str = "", is_secondary: bool = False) -> None:
        self.failure = failure
        self.node = node
        self.is_secondary = is_secondary
        super().__init__(message)


class WorkerError(HpcqError):
    """A worker could not complete its unit, for a reason that it can state in one sentence."""
