"""Calibration texts from data sets on the hub or in a mirror."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from hpcq.catalog.calibration_sets import expanded_calibration
from hpcq.core.calibration_source import DEFAULT_CONFIG, CalibrationSource, parse_calibration_source
from hpcq.core.errors import KeyedInputError, UserInputError
from hpcq.core.hub_cache import HubCache, RepoKind
from hpcq.core.mirror import mirror_revision
from hpcq.core.work_records import Calibration
from hpcq.quantize.calibration_text import Passage, read_passages
from hpcq.stage import calibration_text
from hpcq.stage.calibration_text import prepare_calibration_text
from hpcq.stage.repositories import MirroredRepository
from hpcq.stage.repository_view import RepositoryView
from hpcq.stage.stage_tasks import stage_calibration_text
from tests.hub_datasets import write_json_lines, write_parquet, write_readme
from tests.hub_server import HubServer

WIKITEXT, PILE, C4 = (
    "Salesforce/wikitext",
    "mit-han-lab/pile-val-backup",
    "allenai/c4",
)
LINES = ["", " = A Heading = \n", " A sentence\u2028of two lines . \n"]


def write_wikitext(folder: Path) -> None:
    """Write two configurations in Parquet files."""
    for config in ("wikitext-103-raw-v1", "wikitext-2-raw-v1"):
        write_parquet(
            folder / config,
            {split: [{"text": f"{split}{x}" if x else ""} for x in LINES] for split in ("train", "test")},
        )
    names = ("wikitext-103-raw-v1", "wikitext-2-raw-v1")
    write_readme(folder, {name: {split: f"{name}/{split}-*" for split in ("test", "train")} for name in names})


def write_pile(folder: Path) -> None:
    """Write one Zstandard file."""
    folder.mkdir(parents=True)
    rows = "".join(json.dumps({"text": f"Document {n}", "meta": {"pile_set_name": "x"}}) + "\n" for n in range(3000))
    with pyarrow.CompressedOutputStream(str(folder / "val.jsonl.zst"), "zstd") as file:
        file.write(rows.encode())


def write_c4(folder: Path, files: int) -> None:
    """Write a split of several gzip files."""
    (folder / "en").mkdir(parents=True)
    for number in range(files):
        rows = [{"text": f"Page {number}-{row}", "timestamp": "2019-04-25T12:57:54", "url": "u"} for row in range(10)]
        with gzip.open(folder / "en" / f"c4-train.{number:05}-of-{files:05}.json.gz", "wt") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
    write_readme(folder, {"en": {"train": "en/c4-train.*.json.gz"}, "de": {"train": "de/c4-train.*.json.gz"}})


def text_of(folder: Path, tmp_path: Path, **fields: str) -> list[Passage]:
    """Return the passages of a text from a mirrored data set."""
    source = CalibrationSource(repo_id="org/data", commit="0", **fields)  # type: ignore[arg-type]
    view = RepositoryView(
        repository=MirroredRepository(repo_id="org/data", folder=folder), folder=tmp_path / "view" / "data"
    )
    prepare_calibration_text(view, source, tmp_path / "text.jsonl")
    return read_passages(tmp_path / "text.jsonl")


def no_progress(_: str) -> None:
    """Ignore progress."""


def test_the_source_describes_itself() -> None:
    """The string in work records and the source are the same; a malformed one is refused."""
    text = f"{WIKITEXT}@{'a' * 40}/wikitext-2-raw-v1/train/text"
    source = parse_calibration_source(text)

    assert str(source) == text
    assert (source.config, source.split, source.column) == ("wikitext-2-raw-v1", "train", "text")
    with pytest.raises(UserInputError, match="'org/data' is not '<repository>@<commit>/"):
        parse_calibration_source("org/data")


def test_a_text_is_staged_once(online: HubServer, cache: HubCache) -> None:
    """The rows that are not blank, in order, from the files of one split; a second call makes no request."""
    write_wikitext(online.root / "datasets" / WIKITEXT)
    commit = online.commit(WIKITEXT, "datasets")
    source = f"{WIKITEXT}@{commit}/wikitext-2-raw-v1/train/text"

    path = stage_calibration_text(source, cache, mirror=None, progress=no_progress)
    counts = online.counts()
    again = stage_calibration_text(source, cache, mirror=None, progress=pytest.fail)

    assert path == again == parse_calibration_source(source).path(cache)
    assert read_passages(path) == [f"train{line}" for line in LINES if line]
    assert counts["GET revision 200"] == 1
    assert counts["GET resolve 200"] == counts["HEAD resolve 200"] == 2  # README.md and one Parquet file
    assert online.counts() == {}
    assert Calibration(digest=None, samples=1, sequence_length=8, source=source).source == source


def test_only_the_first_files_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files follow in their order until there are enough characters; the last text is whole."""
    write_c4(tmp_path / "c4", 5)
    monkeypatch.setattr(calibration_text, "MAXIMUM_CHARACTERS", 8 * 14 + 1)

    passages = text_of(tmp_path / "c4", tmp_path, config="en", split="train", column="text")

    assert passages == [f"Page {number}-{row}" for number in range(5) for row in range(10)][:15]
    linked = sorted(path.name for path in (tmp_path / "view").rglob("*.gz") if path.is_symlink())
    assert linked == [f"c4-train.{number:05}-of-00005.json.gz" for number in range(2)]


def test_the_number_of_characters_is_part_of_the_format() -> None:
    """Existing addresses of calibration sources mean this number."""
    assert calibration_text.MAXIMUM_CHARACTERS == 67_108_864


def test_zstandard_files_are_read(tmp_path: Path) -> None:
    """A data set without README.md, in one .jsonl.zst file, needs no further package."""
    write_pile(tmp_path / "pile")

    assert text_of(tmp_path / "pile", tmp_path, split="validation", column="text") == [
        f"Document {n}" for n in range(3000)
    ]


def test_a_mirror_has_texts(tmp_path: Path, cache: HubCache) -> None:
    """A text comes from a mirror without a hub, from plain files too."""
    folder = tmp_path / "mirror" / "datasets" / WIKITEXT
    write_json_lines(folder / "wikitext-2-raw-v1" / "train.jsonl", [{"text": "One."}, {"text": None}, {"text": "Two."}])
    source = f"{WIKITEXT}@{mirror_revision(folder)}/wikitext-2-raw-v1/train/text"

    path = stage_calibration_text(source, cache, mirror=tmp_path / "mirror", progress=no_progress)

    assert read_passages(path) == ["One.", "Two."]


MESSAGES = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
CHAT = [{"prompt": "Hello", "ids": [1, 2], "messages": MESSAGES}]


def write_chat(folder: Path) -> None:
    """Write a data set of chats with one configuration, in Parquet."""
    write_parquet(folder / "data", {"train_sft": CHAT})
    write_readme(folder, {"default": {"train_sft": "data/train_sft-*"}})


@pytest.mark.parametrize(
    ("fields", "key", "message"),
    [
        ({"split": "train_sft", "column": "ids"}, "column", "'ids' of org/data is a list whose elements are not all"),
        ({"split": "train_sft", "column": "text"}, "column", "no column 'text'. Set one of prompt, ids, messages."),
        ({"split": "train", "column": "prompt"}, "split", "org/data has no split 'train'. Set one of train_sft."),
        ({"config": "none", "split": "train", "column": "x"}, "config", "no configuration 'none'. Set one of default."),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, fields: dict[str, Any], key: str, message: str) -> None:
    """Names that the data set does not have, and other types, are refused with the key; no file is left."""
    write_chat(tmp_path / "chat")

    with pytest.raises(KeyedInputError, match=rf"^calibration\.{key}: .*{message}"):
        text_of(tmp_path / "chat", tmp_path, **fields)
    assert not (tmp_path / "text.jsonl").exists()


def test_a_data_set_with_configurations_needs_one(tmp_path: Path) -> None:
    """Without a configuration, a data set that has several is refused with their names."""
    write_wikitext(tmp_path / "wikitext")

    with pytest.raises(
        KeyedInputError, match=r"has several configurations. Set one of wikitext-103-raw-v1, wikitext-2"
    ):
        text_of(tmp_path / "wikitext", tmp_path, split="train", column="text")


def test_chats_are_staged(tmp_path: Path) -> None:
    """A column of messages is a text of chats."""
    write_chat(tmp_path / "chat")

    assert text_of(tmp_path / "chat", tmp_path, split="train_sft", column="messages") == [MESSAGES]


@pytest.mark.parametrize("name", ["wikitext2", "pile-val", "pile-10k", "ultrachat", "llm-compression-calibration"])
def test_named_sets_are_staged_from_the_hub(name: str, online: HubServer, cache: HubCache) -> None:
    """A name stands for a data set with its configuration, split and column, in the layout of its repository."""
    named = expanded_calibration({"dataset": name})
    folder, column, split = online.root / "datasets" / named["dataset"], named["column"], named["split"]
    rows = [{"text": f"Text {number}.", "messages": MESSAGES} for number in range(3)]
    if name == "wikitext2":
        write_wikitext(folder)
    elif name == "pile-val":
        write_pile(folder)
    else:
        write_parquet(folder / "data", {split: rows})
        write_readme(folder, {"default": {split: f"data/{split}-*"}})
    source = CalibrationSource(
        repo_id=named["dataset"],
        commit=online.commit(named["dataset"], "datasets"),
        config=named.get("config", DEFAULT_CONFIG),
        split=split,
        column=column,
    )

    passages = read_passages(stage_calibration_text(str(source), cache, mirror=None, progress=no_progress))

    assert passages[0] == (MESSAGES if column == "messages" else passages[0])
    assert len(passages) == {"wikitext2": 2, "pile-val": 3000}.get(name, 3)


def test_keys_of_a_table_have_priority_over_a_name() -> None:
    """Another split of a named set can be asked for; other data sets stay as they are."""
    named = expanded_calibration({"dataset": "wikitext2", "split": "test", "samples": 4})
    assert (named["dataset"], named["config"], named["split"], named["samples"]) == (
        WIKITEXT, "wikitext-2-raw-v1", "test", 4,
    )  # fmt: skip
    assert expanded_calibration({"dataset": "text.jsonl"}) == {"dataset": "text.jsonl"}


def test_a_damaged_text_is_staged_again(tmp_path: Path, cache: HubCache) -> None:
    """A text without its completion marker, or with another size than it has, is not taken for complete."""
    write_json_lines(tmp_path / "mirror" / "datasets" / PILE / "train.jsonl", [{"text": "One."}])
    source = f"{PILE}@{mirror_revision(tmp_path / 'mirror' / 'datasets' / PILE)}/default/train/text"
    path = parse_calibration_source(source).path(cache)
    path.parent.mkdir(parents=True)
    path.write_text("")
    for _ in range(2):
        stage_calibration_text(source, cache, mirror=tmp_path / "mirror", progress=no_progress)
        assert read_passages(path) == ["One."]
        path.write_text("{")


def test_a_column_of_blanks_is_refused(tmp_path: Path) -> None:
    """A column without any text is refused."""
    write_json_lines(tmp_path / "blank" / "train.jsonl", [{"text": " "}])

    with pytest.raises(KeyedInputError, match=r"^calibration.column: 'text' of .* has no text. Set another column."):
        text_of(tmp_path / "blank", tmp_path, split="train", column="text")


def test_an_error_of_the_program_keeps_its_class(online: HubServer, cache: HubCache) -> None:
    """Invalid input is exit code 2 also if the program finds it."""
    write_c4(online.root / "datasets" / C4, 1)
    source = f"{C4}@{online.commit(C4, 'datasets')}/en/validation/text"

    with pytest.raises(KeyedInputError, match=f"^calibration.split: {C4} has no split 'validation'. Set one of train."):
        stage_calibration_text(source, cache, mirror=None, progress=no_progress)
    assert not cache.snapshot(RepoKind.DATASET, C4, "en").exists()
