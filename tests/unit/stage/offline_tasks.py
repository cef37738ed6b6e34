"""Program for the transformers environment: build the requests of staged tasks in a process without connections.

Reads one JSON object from stdin with `tasks` and `cache`, and prints the number of requests.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from hpcq.core.hub_cache import HubCache
from hpcq.core.work_records import Task
from hpcq.evaluate.lm_eval_tasks import build_tasks


def refuse_connections(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: no connection, and no question for an address."""
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        raise PermissionError(f"{event} {arguments[1:]}")


def main() -> None:
    """Build all requests."""
    document = json.load(sys.stdin)
    cache = HubCache(**{name: Path(folder) for name, folder in document["cache"].items()})
    tasks = [
        Task(name=task["name"], data_revisions=tuple(map(tuple, task["data_revisions"])), cache=cache)
        for task in document["tasks"]
    ]
    sys.addaudithook(refuse_connections)
    print(sum(len(built.requests()) for built in build_tasks(tasks)))  # noqa: T201


if __name__ == "__main__":
    main()
