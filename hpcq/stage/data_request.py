"""Documents that the core and the data program exchange: a request, and the kinds of the program's messages."""

from __future__ import annotations

import json
from dataclasses import field
from enum import StrEnum
from pathlib import Path

from hpcq.core.frozen import dataclass
from hpcq.core.hub_cache import HubCache, datasets_cache
from hpcq.core.work_records import Task


class MessageKind(StrEnum):
    """Kind of a message of the data program."""

    PROGRESS = "progress"
    USER_ERROR = "user error"
    SETUP_ERROR = "setup error"
    CONNECTION_LOST = "connection lost"
    STORAGE_ERROR = "storage error"
    DONE = "done"


_TASK_FIELDS = ("name", "data_revisions", "definitions", "definition_folders", "definition_copies")
"""Fields of a task on which its data depend."""


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """What to stage.

    Attributes:
        tasks: Tasks with the commits of their data sets; other settings do not count.
        calibrations: Values of `Calibration.source`.
        cache: Folders of what is staged.
        mirror: Folder that serves repositories without the hub.
        datasets_cache: Folder in which `datasets` has prepared data sets for other programs.
    """

    tasks: tuple[Task, ...] = ()
    calibrations: tuple[str, ...] = ()
    cache: HubCache
    mirror: Path | None = None
    datasets_cache: Path = field(default_factory=datasets_cache)

    def to_json(self) -> str:
        """Return the request as a JSON document."""
        return json.dumps(
            {
                "tasks": [{name: getattr(task, name) for name in _TASK_FIELDS} for task in self.tasks],
                "calibrations": self.calibrations,
                "cache": {"hub": str(self.cache.hub), "prepared": str(self.cache.prepared)},
                "mirror": str(self.mirror) if self.mirror else None,
                "datasets_cache": str(self.datasets_cache),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> DataRequest:
        """Return the request of a JSON document."""
        document = json.loads(text)
        return cls(
            tasks=tuple(
                Task(
                    name=task["name"],
                    data_revisions=tuple((repo, commit) for repo, commit in task["data_revisions"]),
                    definitions=task["definitions"],
                    definition_folders=tuple(task["definition_folders"]),
                    definition_copies=tuple(task["definition_copies"]),
                )
                for task in document["tasks"]
            ),
            calibrations=tuple(document["calibrations"]),
            cache=HubCache(**{name: Path(folder) for name, folder in document["cache"].items()}),
            mirror=Path(document["mirror"]) if document["mirror"] else None,
            datasets_cache=Path(document["datasets_cache"]),
        )
