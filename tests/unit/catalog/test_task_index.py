"""The index of lm-eval's tasks: its file, the names in it, and the rule for main metrics."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hpcq.catalog import make_task_index
from hpcq.catalog.main_metrics import main_metric
from hpcq.catalog.task_index import find_entry, index_file, indexed_names, write_index
from hpcq.catalog.tasks import known_task


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, without environments."""
    monkeypatch.setenv("HPCQ_CACHE", str(tmp_path))


def test_an_entry_is_read_as_it_was_written() -> None:
    """Also of names and texts with other characters; unknown names have none."""
    fields = {"metric": "acc", "num_fewshot": 0, "requests_per_document": 2.0, "output_type": "loglikelihood"}
    written = {"piqa": {**fields, "members": ["piqa"]}, "größe": {**fields, "metric": "é\n\u2028"}}
    write_index(index_file(), written.items())

    assert indexed_names(index_file()) == ("piqa", "größe")
    assert {name: find_entry(index_file(), name) for name in written} == written
    assert find_entry(index_file(), "mmlu") is None
    info = known_task("piqa")
    assert info
    assert info.members == ("piqa",)


@pytest.mark.parametrize("content", ["", "no JSON", '{"schema": 0, "positions": {}}', "[]", '{"schema": 2}'])
def test_a_damaged_file_counts_as_missing(content: str) -> None:
    """It is made again."""
    index_file().parent.mkdir()
    index_file().write_text(content)

    assert indexed_names(index_file()) is None
    assert find_entry(index_file(), "piqa") is None


def test_a_large_index_costs_milliseconds() -> None:
    """Only the names and one of 15,000 entries are read: less than 50 ms of CPU time."""
    entry = {"metric": "acc", "definitions": ["a/b/c.yaml"] * 20}
    write_index(index_file(), ((f"some_longer_name_{number}", entry) for number in range(15_000)))

    begin_s = time.process_time()
    found = find_entry(index_file(), "some_longer_name_14999")
    assert time.process_time() - begin_s < 0.05
    assert found == entry


def test_without_the_environment_nothing_is_created() -> None:
    """The error says how to create it."""
    with pytest.raises(make_task_index.NoEnvironmentError, match="run `hpcq stage MANIFEST`, or `make environments`"):
        make_task_index.ensure_index()


@pytest.mark.parametrize(
    ("metrics", "main"),
    [
        (["acc", "acc_norm"], "acc_norm"),
        (["f1", "exact_match"], "exact_match"),
        (["word_perplexity", "bits_per_byte"], "word_perplexity"),
        ([], ""),
    ],
)
def test_tables_show_one_metric(metrics: list[str], main: str) -> None:
    """acc_norm, else acc, else exact_match, else the first."""
    assert main_metric(metrics) == main
