"""Data sets of tasks, staged from a local hub: what lm-eval loads online, read without a network."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hpcq.catalog.tasks import TaskInfo, find_task
from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.hub_cache import HubCache, RepoKind
from hpcq.core.work_records import SHUFFLE_SEED, Task
from hpcq.evaluate.lm_eval_tasks import build_tasks
from hpcq.stage.stage_tasks import stage_tasks
from hpcq.stage.staged_tasks import is_task_staged
from tests.hub_datasets import ARC, GPQA, MMLU
from tests.hub_server import HubServer
from tests.unit.stage.conftest import ONLINE

ONLINE_PROGRAM = Path(__file__).with_name("online_tasks.py")
OFFLINE_PROGRAM = Path(__file__).with_name("offline_tasks.py")
SHOTS = {
    "arc_challenge": 2,
    "hellaswag": 2,
    "mmlu": 5,
    "truthfulqa_mc1": None,
    "winogrande": 3,
    "gsm8k": 5,
    "leaderboard_gpqa": None,
    "leaderboard_musr": None,
    "ifeval": None,
}
"""Tasks whose data the hub has, with numbers of few-shot examples."""


@dataclass(frozen=True, kw_only=True)
class Staged:
    """Tasks that are staged, and what their staging requested."""

    tasks: list[Task]
    cache: HubCache
    counts: dict[str, int]


def info_of(name: str) -> TaskInfo:
    """Return the catalog's row."""
    info = find_task(name)
    assert info
    return info


def pinned(name: str, hub: HubServer, cache: HubCache, **fields: Any) -> Task:
    """Return a task at the present commits."""
    info = info_of(name)
    commits = tuple((repo, hub.commit(repo, "datasets")) for repo in info.datasets)
    seed = SHUFFLE_SEED if info.is_shuffled else None
    return Task(name=name, data_revisions=commits, cache=cache, shuffle_seed=seed, **fields)


def no_progress(_: str) -> None:
    """Ignore progress."""


@pytest.fixture(scope="session")
def expected(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What lm-eval alone loads from the hub."""
    asked = {name: {"definition": info_of(name).folder, "shots": shots} for name, shots in SHOTS.items()}
    home = tmp_path_factory.mktemp("online-home")
    nltk_data = f"{os.environ['HPCQ_CACHE']}/nltk_data"
    done = subprocess.run(
        [sys.executable, ONLINE_PROGRAM],
        input=json.dumps(asked),
        env={**os.environ, **ONLINE, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "NLTK_DATA": nltk_data},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="session")
def staged(session_online: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Staged:
    """All tasks, staged once."""
    folder = tmp_path_factory.mktemp("staged")
    cache = HubCache(hub=folder / "hub", prepared=folder / "hpcq")
    tasks = [pinned(name, session_online, cache, num_fewshot=shots) for name, shots in SHOTS.items()]
    session_online.counts()
    stage_tasks(tasks, cache, mirror=None, progress=no_progress)
    return Staged(tasks=tasks, cache=cache, counts=session_online.counts())


def described(task: Task) -> dict[str, Any]:
    """Return features and requests of all leaves, as the online program does."""
    (built,) = build_tasks([task])
    return {
        name: {
            "features": {split: str(rows.features) for split, rows in leaf.dataset.items()},
            "requests": json.loads(json.dumps([instance.args for instance in leaf.instances])),
        }
        for name, leaf in built.leaves.items()
    }


@pytest.mark.parametrize("name", SHOTS)
def test_staged_data_are_those_of_the_hub(name: str, staged: Staged, expected: dict[str, Any]) -> None:
    """For every layout, features and requests equal those that lm-eval loads online."""
    (task,) = [task for task in staged.tasks if task.name == name]

    assert described(task) == expected[name]


def test_requests_are_bounded_by_files(staged: Staged) -> None:
    """Staging requests one list per repository, and each file of the configurations once (HEAD and GET)."""
    files = {path for path in staged.cache.hub.glob("datasets--*/snapshots/*/**/*") if path.is_file()}

    assert len(files) == 57 * 3 + 1 + 3 + 3 + 1 + 3 + 1 + 2 + 1 + 1 + 1 + 3 + 1 + 3 + 1 + 1
    # The client itself asks for /api/agent-harnesses once a day and HF_HOME.
    assert {what: count for what, count in staged.counts.items() if "info" not in what} == {
        "GET revision 200": len(SHOTS),
        "HEAD resolve 200": len(files),
        "GET resolve 200": len(files),
    }


def test_only_the_files_of_a_configuration_are_downloaded(staged: Staged) -> None:
    """Other configurations of a repository are not downloaded."""
    folder = staged.cache.repository(RepoKind.DATASET, ARC) / "snapshots"

    assert {path.parent.name for path in folder.glob("*/*/*.parquet")} == {"ARC-Challenge"}


def test_a_second_staging_makes_no_request(staged: Staged, online: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is staged starts no program and makes no request."""
    monkeypatch.setattr(subprocess, "Popen", None)

    stage_tasks(staged.tasks, staged.cache, mirror=None, progress=pytest.fail)

    assert online.counts() == {}


def test_nodes_make_no_connection(staged: Staged, online: HubServer) -> None:
    """Workers build requests of all tasks in a process that may not connect to anything."""
    tasks = [{"name": task.name, "data_revisions": task.data_revisions} for task in staged.tasks]
    folders = {"hub": str(staged.cache.hub), "prepared": str(staged.cache.prepared)}
    done = subprocess.run(
        [sys.executable, OFFLINE_PROGRAM],
        input=json.dumps({"tasks": tasks, "cache": folders}),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) > 57 * 3 * 4
    assert online.counts() == {}


def test_a_killed_staging_goes_on(online: HubServer, cache: HubCache) -> None:
    """Interrupted before each data set of a group, staging never counts as complete, and ends with every folder."""
    task = pinned("leaderboard_gpqa", online, cache)
    lines: list[str] = []

    class Interrupted(Exception):  # noqa: N818
        """Stands for the end of the command."""

    def interrupt(line: str) -> None:
        if line not in lines:
            lines.append(line)
            raise Interrupted

    for _ in range(4):
        with pytest.raises(Interrupted):
            stage_tasks([task], cache, mirror=None, progress=interrupt)
        assert not is_task_staged(task, cache)
    stage_tasks([task], cache, mirror=None, progress=interrupt)

    assert lines == ["Data of leaderboard_gpqa", *(f"  {GPQA} gpqa_{name}" for name in ("diamond", "extended", "main"))]
    assert is_task_staged(task, cache)
    assert online.counts()["GET revision 200"] == 1
    assert len(build_tasks([task])[0].requests()) == 4 * (2 + 4 + 3)


def test_a_missing_folder_is_staged_again(staged: Staged, hub: HubServer, tmp_path: Path) -> None:
    """A marker whose folder was deleted does not count, and a worker names task, data set, commit and command."""
    (arc,) = [task for task in staged.tasks if task.name == "arc_challenge"]
    cache = HubCache(hub=tmp_path / "hub", prepared=tmp_path / "prepared")
    task = dataclasses.replace(arc, cache=cache)
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "tasks").symlink_to(staged.cache.prepared / "tasks")

    assert is_task_staged(arc, staged.cache)
    assert not is_task_staged(task, cache)
    commit = hub.commit(ARC, "datasets")
    text = rf"arc_challenge: the data set '{ARC}' at commit {commit} \(name 'ARC-Challenge'\) is not staged in "
    with pytest.raises(SetupError, match=rf"{text}.*hpcq stage MANIFEST"):
        build_tasks([task])


@pytest.mark.parametrize("name", ["dataset_dict.json", "test/state.json", "train/data-00000-of-00001.arrow"])
def test_a_data_set_without_some_files_is_staged_again(online: HubServer, cache: HubCache, name: str) -> None:
    """What a cleaning of the file system left of a data set does not count, and is replaced; so is a damaged list."""
    task = pinned("arc_challenge", online, cache)
    stage_tasks([task], cache, mirror=None, progress=no_progress)
    (folder,) = [path for path in cache.prepared.glob("datasets/*/*/*") if path.is_dir()]
    (folder / name).unlink()
    (folder.parent / "files.json").write_text("[", encoding="utf-8")
    assert not is_task_staged(task, cache)

    stage_tasks([task], cache, mirror=None, progress=no_progress)

    assert is_task_staged(task, cache)
    assert build_tasks([task])[0].requests()


def test_ifeval_needs_the_files_of_nltk(staged: Staged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without NLTK's data in hpcq's cache, IFEval is not staged; other tasks are."""
    monkeypatch.setenv("HPCQ_CACHE", str(tmp_path))

    assert [task.name for task in staged.tasks if not is_task_staged(task, staged.cache)] == ["ifeval"]


def test_the_core_imports_no_library(core_python: Path) -> None:
    """To ask what is staged, and to start staging, the core needs neither datasets nor the hub's client."""
    code = "import sys, hpcq.stage.stage_tasks; print(*{'datasets', 'lm_eval', 'huggingface_hub'} & sys.modules.keys())"

    assert subprocess.run([core_python, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_another_commit_is_not_staged(staged: Staged) -> None:
    """A task is staged at the commits that it names and at no others."""
    (arc,) = [task for task in staged.tasks if task.name == "arc_challenge"]

    assert not is_task_staged(dataclasses.replace(arc, data_revisions=((ARC, "0" * 40),)), staged.cache)


def test_an_error_of_the_hub_is_one_sentence(
    online: HubServer, cache: HubCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub that fails until the retries end is a SetupError that names the data set; nothing counts as staged."""
    task = pinned("mmlu", online, cache)
    monkeypatch.setenv("HPCQ_HUB_RETRY_S", "1")
    online.set(cut_after=10, only="resolve")
    try:
        with pytest.raises(SetupError, match=rf"{MMLU}@[0-9a-f]{{12}}: the connection was lost"):
            stage_tasks([task], cache, mirror=None, progress=no_progress)
    finally:
        online.set(cut_after=0, only="")

    assert not is_task_staged(task, cache)


def test_an_unknown_commit_is_refused(online: HubServer, cache: HubCache) -> None:
    """A commit that the hub does not have is refused with a sentence that names both."""
    task = dataclasses.replace(pinned("mmlu", online, cache), data_revisions=((MMLU, "0" * 40),))

    with pytest.raises(UserInputError, match=f"{MMLU}@{'0' * 12}: the data set does not have this commit"):
        stage_tasks([task], cache, mirror=None, progress=no_progress)


def test_a_program_that_dies_is_reported(online: HubServer, cache: HubCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the program ends without a result, the error says so."""
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")

    with pytest.raises(SetupError, match=r"The data of arc_challenge could not be staged: .* ended without a result"):
        stage_tasks([pinned("arc_challenge", online, cache)], cache, mirror=None, progress=no_progress)
