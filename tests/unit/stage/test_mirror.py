"""Data sets of a mirror: snapshots and plain files, without a hub."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest

from hpcq.catalog.tasks import find_task
from hpcq.core.errors import SetupError, UserInputError
from hpcq.core.hub_cache import HubCache, RepoKind
from hpcq.core.mirror import mirror_revision, mirrored_repository, repository_files
from hpcq.core.work_records import Task
from hpcq.evaluate.lm_eval_tasks import build_tasks
from hpcq.stage.prepare_dataset import prepare_dataset
from hpcq.stage.repositories import MirroredRepository, open_repository
from hpcq.stage.repository_view import RepositoryView
from hpcq.stage.stage_tasks import stage_tasks
from hpcq.stage.staged_tasks import is_task_staged
from tests.hub_datasets import GSM8K, MMLU, MUSR, Rows, gsm8k_rows, mmlu_rows, musr_rows, write_json_lines
from tests.hub_server import HubServer
from tests.unit.stage.conftest import mmlu_subjects


def mirrored(name: str, mirror: Path, cache: HubCache) -> Task:
    """Return a task with the present files of the mirror."""
    info = find_task(name)
    assert info
    folders = {repo: mirrored_repository(mirror, RepoKind.DATASET, repo) for repo in info.datasets}
    revisions = tuple((repo, mirror_revision(folder)) for repo, folder in folders.items() if folder)
    return Task(name=name, data_revisions=revisions, cache=cache)


def no_progress(_: str) -> None:
    """Ignore progress."""


def documents(task: Task) -> dict[str, Rows]:
    """Return the evaluated documents of each leaf."""
    (built,) = build_tasks([task])
    return {name: list(leaf.eval_docs) for name, leaf in built.leaves.items()}


def load(folder: Path, tmp_path: Path, **arguments: Any) -> Any:
    """Return what is prepared from a mirrored repository."""
    repository = MirroredRepository(repo_id="org/data", folder=folder)
    view = RepositoryView(repository=repository, folder=tmp_path / "view" / "data")
    return load_view(view, tmp_path, **arguments)


def load_view(view: RepositoryView, tmp_path: Path, **arguments: Any) -> Any:
    """Return what is prepared from a view."""
    target = tmp_path / "prepared" / json.dumps(arguments).replace("/", "-")
    prepare_dataset(view, arguments, target)
    return datasets.load_from_disk(str(target))


def write_plain(folder: Path, splits: Mapping[str, Rows], suffix: str) -> None:
    """Write `<split>.<suffix>`."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        data = datasets.Dataset.from_list(rows)
        path = str(folder / f"{split}.{suffix}")
        {"parquet": data.to_parquet, "jsonl": data.to_json, "csv": data.to_csv}[suffix](path)


def test_a_snapshot_serves_a_group(hub: HubServer, cache: HubCache) -> None:
    """A folder with the files of the repositories serves tasks without a hub, groups included."""
    tasks = [mirrored(name, hub.root, cache) for name in ("arc_challenge", "leaderboard_gpqa")]

    begun: list[str] = []
    stage_tasks(tasks, cache, mirror=hub.root, progress=no_progress, begins=begun.append)

    assert [len(documents(task)) for task in tasks] == [1, 3]
    assert begun == ["arc_challenge", "leaderboard_gpqa"]  # all lines had the name of the first task
    assert not cache.hub.exists()


def test_plain_files_serve_a_group(tmp_path: Path, cache: HubCache) -> None:
    """Files named by split, in a folder per configuration, serve 57 subtasks; `dev` and `validation` stay apart."""
    for number, subject in enumerate(mmlu_subjects()):
        rows = {
            split: mmlu_rows(subject, split, count) for split, count in (("test", 2), ("dev", 5), ("validation", 1))
        }
        write_plain(tmp_path / "datasets" / MMLU / subject, rows, ("parquet", "jsonl")[number % 2])
    task = mirrored("mmlu", tmp_path, cache)

    stage_tasks([task], cache, mirror=tmp_path, progress=no_progress)

    found = documents(task)
    assert found == {f"mmlu_{subject}": mmlu_rows(subject, "test", 2) for subject in mmlu_subjects()}


def test_changed_files_are_another_revision(tmp_path: Path, cache: HubCache) -> None:
    """Changed content has another identity; staging for the earlier one is refused with the folder."""
    folder = tmp_path / "datasets" / GSM8K
    write_plain(folder, {split: gsm8k_rows(split, 6) for split in ("train", "test")}, "jsonl")
    before = mirrored("gsm8k", tmp_path, cache)
    write_json_lines(folder / "test.jsonl", gsm8k_rows("test", 7))

    assert mirrored("gsm8k", tmp_path, cache) != before
    with pytest.raises(SetupError, match=rf"{folder}: the mirrored files have the digest .* submit the manifest again"):
        stage_tasks([before], cache, mirror=tmp_path, progress=no_progress)
    with pytest.raises(SetupError, match=rf"{GSM8K}: the run was planned with a mirrored data set.*none is set"):
        open_repository(GSM8K, before.data_revisions[0][1], cache, None)


@pytest.mark.parametrize(
    ("splits", "reason"),
    [
        ({"test": gsm8k_rows("test", 2)}, "they have no split or column 'train'"),
        ({"test": [{"text": "?"}], "train": [{"text": "?"}]}, "'question' is undefined"),
        ({"test": [], "train": gsm8k_rows("train", 2)}, "a split is empty"),
    ],
)
def test_files_with_other_content_are_refused(
    tmp_path: Path, cache: HubCache, splits: dict[str, Rows], reason: str
) -> None:
    """Missing splits, other columns and empty files are refused when they are staged, and do not count as staged."""
    for split, rows in splits.items():
        write_json_lines(tmp_path / "datasets" / GSM8K / f"{split}.jsonl", rows)
    task = mirrored("gsm8k", tmp_path, cache)

    with pytest.raises(
        UserInputError,
        match=rf"gsm8k: its documents cannot be loaded from {GSM8K}@[0-9a-f]{{12}}: .*{reason}.* in data\.mirror\.$",
    ):
        stage_tasks([task], cache, mirror=tmp_path, progress=no_progress)
    assert not is_task_staged(task, cache)


def test_damaged_and_missing_files_are_refused_with_their_place(tmp_path: Path, cache: HubCache) -> None:
    """Invalid JSON has the mirror's file and line (it was a temporary one); a folder without files has a fix."""
    folder = tmp_path / "datasets" / GSM8K
    for split in ("test", "train"):
        write_json_lines(folder / f"{split}.jsonl", gsm8k_rows(split, 6))
    with (folder / "test.jsonl").open("a") as file:
        file.write('{"question": ')
    with pytest.raises(
        UserInputError, match=rf"^{folder}/test\.jsonl:7: not JSON .*: write one JSON object per line\."
    ):
        stage_tasks([mirrored("gsm8k", tmp_path, cache)], cache, mirror=tmp_path, progress=no_progress)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(UserInputError, match=rf"{GSM8K}: .*<split>\.jsonl files, to its folder in data\.mirror\."):
        stage_tasks([mirrored("gsm8k", tmp_path, cache)], cache, mirror=tmp_path, progress=no_progress)


def test_what_download_tools_leave_is_not_part_of_the_identity(tmp_path: Path) -> None:
    """Hidden files, such as those of `hf download --local-dir`, are ignored, except `.huggingface.yaml`."""
    write_json_lines(tmp_path / "main" / "test.jsonl", [{"a": 1}])
    before = mirror_revision(tmp_path)
    write_json_lines(tmp_path / ".cache" / "huggingface" / "test.jsonl.metadata", [])
    (tmp_path / ".gitattributes").touch()
    assert mirror_revision(tmp_path) == before

    (tmp_path / ".huggingface.yaml").touch()
    shutil.move(tmp_path / "main" / "test.jsonl", tmp_path / "main" / "train.jsonl")
    assert repository_files(tmp_path) == (".huggingface.yaml", "main/train.jsonl")
    assert mirror_revision(tmp_path) != before


def test_split_names_of_plain_files_are_literal(tmp_path: Path) -> None:
    """Any name is a split, also in several files."""
    names = ("murder_mysteries", "team_allocation")
    write_plain(tmp_path / MUSR, {name: musr_rows(name, 2) for name in names}, "csv")
    write_plain(tmp_path / MUSR, {f"many-{number:05}-of-00002": musr_rows("many", 1) for number in range(2)}, "csv")

    loaded = load(tmp_path / MUSR, tmp_path)

    assert {split: len(rows) for split, rows in loaded.items()} == {**dict.fromkeys(names, 2), "many": 2}


def test_strings_of_json_lines_stay_strings(tmp_path: Path) -> None:
    """Answers that look like dates are not converted."""
    write_json_lines(tmp_path / "plain" / "test.jsonl", [{"answer": "2001-02-03"}, {"answer": "2002-03-04"}])

    assert load(tmp_path / "plain", tmp_path)["test"]["answer"][:] == ["2001-02-03", "2002-03-04"]


def test_plain_files_without_a_folder_are_one_configuration(tmp_path: Path) -> None:
    """They serve the configuration that is read, but not two: 57 subjects would be the same data."""
    write_json_lines(tmp_path / "plain" / "test.jsonl", [{"a": "1"}])
    view = RepositoryView(
        repository=MirroredRepository(repo_id="org/data", folder=tmp_path / "plain"), folder=tmp_path / "view"
    )

    assert load_view(view, tmp_path, name="main")["test"].to_list() == [{"a": "1"}]
    with pytest.raises(SetupError, match=r"org/data: .*the configurations 'main' and 'other' are read\. Put the files"):
        load_view(view, tmp_path, name="other")


def test_several_formats_are_refused(tmp_path: Path) -> None:
    """One configuration in two formats is refused: only one of them would be read."""
    write_plain(tmp_path / "plain", {"test": [{"a": "1"}]}, "jsonl")
    write_plain(tmp_path / "plain", {"train": [{"a": "1"}]}, "csv")

    with pytest.raises(SetupError, match=r"org/data: .*'default' have several formats \(csv, jsonl\)"):
        load(tmp_path / "plain", tmp_path)


def test_a_missing_configuration_is_named(hub: HubServer, tmp_path: Path) -> None:
    """A configuration that a repository does not declare is refused with those that it has."""
    with pytest.raises(
        UserInputError, match=r"org/data: .* load name 'none': BuilderConfig 'none' not found\. Available: "
    ):
        load(hub.root / "datasets" / GSM8K, tmp_path, name="none")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    """A file that is not what its name says is one sentence."""
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "test.parquet").write_text("no table")

    with pytest.raises(UserInputError, match=r"org/data: `datasets` cannot load the default configuration: .*Parquet"):
        load(tmp_path / "plain", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "splits"),
    [
        ({"data_files": {"held_out": "b/*.jsonl"}}, {"held_out": 2}),
        ({"data_dir": "a"}, {"train": 1, "test": 1}),
        ({"data_dir": "a", "split": "test"}, None),
        ({"data_files": "b/one.jsonl", "verification_mode": "no_checks"}, {"train": 1}),
    ],
)
def test_arguments_of_definitions_select_as_online(tmp_path: Path, arguments: dict[str, Any], splits: Any) -> None:
    """`data_files`, `data_dir` and `split` select what `datasets.load_dataset` selects in the repository's folder."""
    for name in ("a/train", "a/test", "b/one", "b/two"):
        write_json_lines(tmp_path / "data" / f"{name}.jsonl", [{"name": name}])
    (tmp_path / "data" / "README.md").write_text("Items.\n")

    loaded = load(tmp_path / "data", tmp_path, **arguments)
    direct = datasets.load_dataset(str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"), **arguments)

    assert loaded.column_names == direct.column_names
    if splits is None:
        assert list(loaded) == list(direct)
    else:
        assert {split: list(rows) for split, rows in loaded.items()} == {s: list(rows) for s, rows in direct.items()}
        assert {split: len(rows) for split, rows in loaded.items()} == splits


def test_names_that_lead_out_of_the_repository_are_refused(tmp_path: Path) -> None:
    """A repository cannot have files elsewhere."""
    for name in ("../outside", "/outside"):

        class Malicious:
            """A repository with such a name."""

            repo_id, is_mirrored = "org/data", False

            def names(self, name: str = name) -> tuple[str, ...]:
                """Return the name."""
                return (name,)

        with pytest.raises(
            SetupError, match=re.escape(f"org/data: the file name '{name}' is outside of the repository")
        ):
            RepositoryView(repository=Malicious(), folder=tmp_path / "view" / "data")  # type: ignore[arg-type]
