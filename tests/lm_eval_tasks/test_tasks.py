"""Tasks of lm-eval, and own ones, from a hub through staging, evaluation and merge: everything equals lm-eval."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import running_hub
from tests.lm_eval_tasks.cases import FAST
from tests.lm_eval_tasks.runner import Runner, write_hub, write_own_tasks


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, transformers_python: Path) -> Path:
    """The folder of all repositories."""
    folder = tmp_path_factory.mktemp("hub")
    write_hub(folder, transformers_python)
    return folder


@pytest.fixture
def runner(root: Path, tmp_path: Path, core_python: Path, transformers_python: Path) -> Iterator[Runner]:
    """A user of the hub."""
    with running_hub(root) as hub:
        yield Runner(hub=hub, folder=tmp_path, core=core_python, transformers=transformers_python)


def test_requests_and_metrics_equal_lm_eval(runner: Runner) -> None:
    """All types of requests, a group, a tag, a leaf of a group; all metrics are the same numbers."""
    assert runner.compare(FAST).differences == []


def test_own_definitions_equal_lm_eval(runner: Runner, tmp_path: Path) -> None:
    """A group of the user with a task that calls a Python function, and a member of lm-eval."""
    assert runner.compare(["my_group"], own=write_own_tasks(tmp_path / "mine")).differences == []
