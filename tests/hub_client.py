"""A client of the test hub in its own process with its own HF_HOME: huggingface_hub reads its variables at import.

`HubClient` sends calls of `hpcq.stage` to `python hub_client.py`, which prints their results as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hpcq.core.errors import HpcqError
from hpcq.core.hub_cache import HubCache, RepoKind, hub_cache

OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE")
FILE_LIMIT = "HUB_CLIENT_FILE_LIMIT"
"""Variable with the size in bytes of the largest file that the process can write (setrlimit(2))."""


@dataclass(frozen=True)
class Answer:
    """Result of a call.

    Attributes:
        value: The result as JSON.
        error: Message of the exception; None: it succeeded.
        exit_code: Exit code that the command line would have.
        failure: Class of the failure.
        notes: Lines about retries.
        phases: Phases of the progress, each once.
        output: Standard error of the process.
    """

    value: Any
    error: str | None
    exit_code: int
    failure: str | None
    notes: list[str]
    phases: list[str]
    output: str

    def __post_init__(self) -> None:
        """Check what holds for all messages."""
        if self.error is not None:
            assert "\n" not in self.error
            assert self.error.endswith(".")


@dataclass(frozen=True)
class HubClient:
    """A user with an empty home, who uses one hub.

    Attributes:
        home: HF_HOME, below which everything is written.
        url: HF_ENDPOINT.
        variables: Further environment variables.
    """

    home: Path
    url: str
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def cache(self) -> HubCache:
        """The user's cache."""
        return HubCache(hub=self.home / "hub", prepared=self.home / "hpcq")

    def environment(self) -> dict[str, str]:
        """Return the variables of the client's processes."""
        kept = {name: value for name, value in os.environ.items() if name not in OFFLINE_VARIABLES}
        own = {"HF_HOME": str(self.home), "HF_ENDPOINT": self.url, "HPCQ_CACHE": str(self.home / "hpcq-cache")}
        own |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0", "HPCQ_HUB_RETRY_S": "60"}
        own |= {"HF_HUB_DOWNLOAD_TIMEOUT": "120"}  # seconds: tests run on loaded machines
        return kept | own | self.variables

    def start(self, name: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
        """Start a call."""
        call = json.dumps({"name": name, "arguments": arguments, "options": options})
        return subprocess.Popen(
            [sys.executable, __file__, call],
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, name: str, *arguments: object, **options: object) -> Answer:
        """Call a function and return its result."""
        return finish(self.start(name, *arguments, **options))


def finish(process: subprocess.Popen[str]) -> Answer:
    """Return the result of a call that was started."""
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return Answer(**json.loads(output.splitlines()[-1]), output=errors)


class Recorder:
    """A reporter that keeps the lines and the phases."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.phases: dict[str, None] = {}
        self.result: Any = None

    def progress(self, progress: Any) -> None:
        """Keep the phase, and check the bytes."""
        assert 0 <= progress.done <= progress.total, progress
        self.phases[str(progress.phase)] = None

    def note(self, _: object, text: str) -> None:
        """Keep the line, and print it for those who wait for it."""
        self.notes.append(text)
        print(text, file=sys.stderr, flush=True)  # noqa: T201

    def finished(self, staged: Any) -> None:
        """Keep the result."""
        self.result = staged


def _call(name: str, arguments: list[Any], options: dict[str, Any], recorder: Recorder) -> Any:
    from hpcq.manifest.loader import load_schema
    from hpcq.stage import hub_client, model_snapshot, pins, snapshot

    cache, notify = hub_cache(), recorder.notes.append
    calls = {
        "stage": lambda: asdict(model_snapshot.stage_model(*arguments, cache, reporter=recorder, **options)),
        "missing": lambda: asdict(model_snapshot.missing_bytes(*arguments, cache, notify=notify)),
        "resolve": lambda: asdict(hub_client.resolve(kind, *rest, cache, notify=notify)),
        "list": lambda: [asdict(file) for file in hub_client.list_files(kind, *rest, notify=notify)],
        "access": lambda: hub_client.check_access(kind, *rest, notify=notify),
        "fetch": lambda: str(hub_client.fetch_files(kind, *rest, cache, notify=notify, **options)),
        "pins": lambda: pins.find_pins(load_schema(Path(*arguments))).problems(in_input=True),
        "is_staged": lambda: snapshot.is_staged(kind, *rest, cache),
    }
    kind, *rest = arguments
    kind = RepoKind(kind) if name not in ("stage", "missing", "pins") else kind
    return calls[name]()


@contextlib.contextmanager
def _failure(answer: dict[str, Any]) -> Iterator[None]:
    from hpcq.core.error_classification import classify_error

    try:
        yield
    except HpcqError as error:
        answer |= {"error": str(error), "exit_code": error.exit_code, "failure": classify_error(error)}


def main() -> None:
    """Call one function, and print its result."""
    if limit := os.environ.get(FILE_LIMIT):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    call, recorder = json.loads(sys.argv[1]), Recorder()
    answer: dict[str, Any] = {"value": None, "error": None, "exit_code": 0, "failure": None}
    with _failure(answer):
        answer["value"] = _call(call["name"], call["arguments"], call["options"], recorder)
    print(json.dumps({**answer, "notes": recorder.notes, "phases": list(recorder.phases)}))  # noqa: T201


if __name__ == "__main__":
    main()
