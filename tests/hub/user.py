"""A user of the hub with an own home, who types hpcq's commands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hpcq.core.hub_cache import HubCache
from tests.command_line import CommandResult, Hpcq

ONLINE = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_TOKEN": ""}


@dataclass(frozen=True, kw_only=True)
class User:
    """A user's commands.

    Attributes:
        hpcq: The command line, in the user's working directory.
        home: HF_HOME.
        url: HF_ENDPOINT.
        variables: Further environment variables.
    """

    hpcq: Hpcq
    home: Path
    url: str
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def cache(self) -> HubCache:
        """The cache in the user's home."""
        return HubCache(hub=self.home / "hub", prepared=self.home / "hpcq")

    def environment(self) -> dict[str, str]:
        """Return the variables of the user's processes."""
        return {**ONLINE, "HF_HOME": str(self.home), "HF_ENDPOINT": self.url, **self.variables}

    def __call__(self, *arguments: str | Path, **variables: str) -> CommandResult:
        """Run a command of hpcq, which prints no traceback."""
        done = self.hpcq(*arguments, env={**self.environment(), **variables})
        assert "Traceback" not in done.err + done.out, done.err
        return done

    def succeed(self, *arguments: str | Path, **variables: str) -> CommandResult:
        """Run a command of hpcq, which exits with 0."""
        done = self(*arguments, **variables)
        assert done.code == 0, done.err + done.out
        return done
