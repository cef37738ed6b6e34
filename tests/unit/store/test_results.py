"""`results.h5` has the same bytes for the same segments, and plain h5py reads it as documented."""

from __future__ import annotations

import contextlib
import io
import math
import multiprocessing
import re
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import hpcq.store
from hpcq.core.errors import RunIncompleteError, SegmentCorruptError
from hpcq.store import (
    Index,
    MergeReport,
    Response,
    Score,
    VariantResults,
    load_index,
    merge_report,
    read_responses,
    read_results,
    results_are_current,
    write_results,
)

FORMATS = Path(hpcq.store.__file__).parents[2] / "docs" / "formats.md"
PROVENANCE = {"hpcq_version": "1.0", "git_commit": "abc", "units": 3}
SCORES = [
    Score(task="arc", metric="acc_norm", filter="none", value=0.25, stderr=0.1, n=4),
    Score(task="arc", metric="acc", filter="none", value=1 / 3, stderr=None, n=4),
]


def _write(path: Path, index: Index, expected: list[Any]) -> MergeReport:
    merge = merge_report([("smol--fp8", expected, index)])
    part = VariantResults(
        variant="smol--fp8",
        index=index,
        scores=SCORES,
        provenance={"model": "smol", "scheme": "fp8", "rehearsal": False, "seconds": 1.5, "note": ""},
    )
    write_results(path, run="small", provenance=PROVENANCE, variants=[part], merge=merge)
    return merge


@pytest.fixture
def folders(tmp_path: Path, write: Any, key: Any) -> list[Path]:
    """Return two shards: four keys with one response each, one of them twice, one conflict, and one damaged file."""
    folders = [tmp_path / "u.0of2", tmp_path / "u.1of2"]
    write(folders[0], [(key(doc_id), Response(-float(doc_id), doc_id == 1)) for doc_id in (3, 1, 0)])
    write(folders[1], [(key(0), Response(-0.5, is_greedy=False)), (key(1), Response(-1.0, is_greedy=True))])
    write(folders[1], [(key(7, "gsm8k"), Response(text="so: é")), (key(2, "gsm8k"), Response(text=""))])
    torn = write(folders[1], [(key(8), Response(-1.0, is_greedy=True))], attempt=9)
    torn.write_bytes(torn.read_bytes()[:50])
    return folders


def test_the_same_segments_give_the_same_bytes(
    tmp_path: Path, folders: list[Path], key: Any, addresses: dict[str, str]
) -> None:
    """The whole files are equal, not only their data, for any order of the folders and at any time."""
    _write(tmp_path / "a", load_index(folders, expect=addresses), [key(0), key(1)])
    time.sleep(1.05)  # HDF5 time stamps have a resolution of one second
    _write(tmp_path / "b", load_index(folders[::-1], expect=addresses), [key(0), key(1)])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def _merge_often(path: Path, folders: list[Path], expected: list[Any], addresses: dict[str, str]) -> None:
    for _ in range(10):
        _write(path, load_index(folders, expect=addresses), expected)


def test_concurrent_merges_leave_one_complete_file(
    tmp_path: Path, folders: list[Path], key: Any, addresses: dict[str, str]
) -> None:
    """Three processes merge into one path; the file is complete at any moment, and its bytes never change."""
    path = tmp_path / "results.h5"
    _write(path, load_index(folders, expect=addresses), [key(1)])
    first = path.read_bytes()
    fork = multiprocessing.get_context("fork")
    mergers = [fork.Process(target=_merge_often, args=(path, folders, [key(1)], addresses)) for _ in range(3)]
    for merger in mergers:
        merger.start()
    while any(merger.is_alive() for merger in mergers):
        assert read_results(path).run == "small"
        assert path.read_bytes() == first
    assert [merger.exitcode for merger in mergers] == [0, 0, 0]
    assert [item.name for item in tmp_path.iterdir() if item.is_file()] == ["results.h5"]


def test_results_are_read_as_they_were_written(
    tmp_path: Path, folders: list[Path], key: Any, addresses: dict[str, str]
) -> None:
    """Provenance with its types, sorted scores, rows by task, the report of the merge, and every response."""
    index = load_index(folders, expect=addresses)
    merge = _write(tmp_path / "results.h5", index, [key(1)])

    results = read_results(tmp_path / "results.h5")

    assert (results.run, results.provenance, results.merge) == ("small", PROVENANCE, merge.as_json())
    [variant] = results.variants
    assert variant.variant == "smol--fp8"
    assert variant.provenance == {"model": "smol", "scheme": "fp8", "rehearsal": False, "seconds": 1.5, "note": ""}
    assert variant.scores == tuple(sorted(SCORES))
    assert variant.rows == {"arc": 2, "gsm8k": 2}
    assert read_responses(tmp_path / "results.h5", "smol--fp8") == index.responses


def test_the_merge_counts_every_expected_request_once(folders: list[Path], key: Any, addresses: dict[str, str]) -> None:
    """Expected = found + missing + conflicts; unexpected responses are counted separately; details follow."""
    expected = [key(doc_id) for doc_id in (0, 1, 3, 4, 5)] + [key(2, "gsm8k"), key(3, "gsm8k")]

    document = merge_report([("v", expected, load_index(folders, expect=addresses))]).as_json()

    numbers = ("expected", "found", "missing", "duplicates", "conflicts", "set_aside", "unexpected", "ignored")
    assert [document[number] for number in numbers] == [7, 3, 3, 1, 1, 1, 1, 0]
    assert document["missing_from"] == [
        {"variant": "v", "task": "arc", "rows": 2},
        {"variant": "v", "task": "gsm8k", "rows": 1},
    ]
    [conflict] = document["conflict_details"]
    assert conflict["key"]["doc_id"] == 0
    assert [claim["loglikelihood"] for claim in conflict["claims"]] == [-0.0, -0.5]
    assert "truncated" in document["set_aside_details"][0]["reason"]


def test_results_are_current_for_unchanged_inputs(
    tmp_path: Path, folders: list[Path], write: Any, key: Any, addresses: dict[str, str]
) -> None:
    """Results are current for the same inputs and provenance only; a missing or damaged file never is."""
    path = tmp_path / "results.h5"

    def is_current(**changes: str | int) -> bool:
        inputs = {"smol--fp8": load_index(folders, expect=addresses).inputs}
        return results_are_current(path, inputs=inputs, provenance={**PROVENANCE, **changes})

    assert not is_current()
    _write(path, load_index(folders, expect=addresses), [])
    assert is_current()
    assert not is_current(git_commit="def")
    write(folders[0], [(key(30), Response(-1.0, is_greedy=True))])
    assert not is_current()
    _write(path, load_index(folders, expect=addresses), [])
    path.write_bytes(path.read_bytes()[:-1])
    assert not is_current()


def test_an_altered_result_is_never_read(
    tmp_path: Path, folders: list[Path], key: Any, addresses: dict[str, str]
) -> None:
    """A flipped bit anywhere, also in a score or an attribute, is an error."""
    path = tmp_path / "results.h5"
    _write(path, load_index(folders, expect=addresses), [key(1)])
    content = path.read_bytes()
    for at in np.linspace(0, len(content) - 1, 300, dtype=int).tolist():
        path.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
        with pytest.raises(SegmentCorruptError, match=re.escape(str(path))):
            read_results(path)


def test_the_error_for_missing_results_names_the_command(
    tmp_path: Path, folders: list[Path], addresses: dict[str, str]
) -> None:
    """The file does not exist yet, or has no such variant."""
    path = tmp_path / "results.h5"
    with pytest.raises(RunIncompleteError, match=r"create them with `hpcq merge RUN`"):
        read_results(path)
    _write(path, load_index(folders, expect=addresses), [])
    with pytest.raises(RunIncompleteError, match=r"no variant 'other'; variants: \['smol--fp8'\]"):
        read_responses(path, "other")


def test_names_that_hdf5_cannot_store_are_encoded(tmp_path: Path, write: Any, key: Any) -> None:
    """A task with slashes in its name, or with only dots, is one group."""
    addresses = dict.fromkeys(["org/task", "..", "é%2F"], "a")
    write(tmp_path / "u", [(key(1, task), Response(-1.0, is_greedy=True)) for task in addresses], addresses=addresses)
    index = load_index([tmp_path / "u"], expect=addresses)
    scores = [Score(task=task, metric="é", filter="", value=math.pi, stderr=0.0, n=1) for task in addresses]
    part = VariantResults(variant="a/b", index=index, scores=scores, provenance={})

    write_results(tmp_path / "r.h5", run="r", provenance={}, variants=[part], merge=merge_report([]))

    [variant] = read_results(tmp_path / "r.h5").variants
    assert (variant.variant, variant.rows) == ("a/b", dict.fromkeys(addresses, 1))
    assert sorted(variant.scores) == sorted(scores)
    assert read_responses(tmp_path / "r.h5", "a/b") == index.responses


def test_datasets_carry_hdf5_s_own_checksums(tmp_path: Path, folders: list[Path], addresses: dict[str, str]) -> None:
    """HDF5 itself reports damage to users of plain h5py; texts are compressed."""
    _write(tmp_path / "results.h5", load_index(folders, expect=addresses), [])
    with h5py.File(tmp_path / "results.h5", "r") as file:
        columns = file["responses/smol--fp8/gsm8k"]
        assert all(column.fletcher32 for column in columns.values() if len(column))
        assert columns["text"].compression == "gzip"


def test_h5py_alone_reads_the_results_as_documented(
    tmp_path: Path, folders: list[Path], key: Any, addresses: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Python code in docs/formats.md runs on a real file, without hpcq, and prints its content."""
    _write(tmp_path / "results.h5", load_index(folders, expect=addresses), [key(1)])
    [code] = re.findall(r"```python\n(.*?)```", FORMATS.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()

    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(FORMATS), "exec"), {})  # noqa: S102 - the documentation is under test

    assert "hpcq" not in re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)
    lines = printed.getvalue().splitlines()
    assert "smol--fp8 arc acc none 0.3333 n=4" in lines
    assert "smol--fp8 arc document 3: -3.0 greedy False" in lines
    assert "smol--fp8 gsm8k document 7: 'so: é'" in lines
    assert any(line.startswith("in conflict: arc document 0") for line in lines)
