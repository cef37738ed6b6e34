"""Windows of a fidelity panel in the store: segments, compaction, conflicts, and arrays in `results.h5`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hpcq.core.errors import SegmentCorruptError
from hpcq.core.work_records import PANEL_TASK
from hpcq.store import (
    RequestKey,
    Response,
    ResponseKind,
    TopLogprobs,
    VariantResults,
    compact,
    digest_of_arguments,
    load_index,
    merge_report,
    open_results,
    read_responses,
    write_results,
)
from hpcq.store.top_logprobs import unpack

ADDRESSES = {PANEL_TASK: "c" * 64, "arc": "a" * 64}
TOKENS, TOP = 6, 4


def window(seed: int) -> TopLogprobs:
    """Random numbers in the form of a window."""
    generator = np.random.default_rng(seed)
    logprobs = -np.sort(generator.exponential(2.0, (TOKENS - 1, TOP)), axis=1).astype(np.float32)
    return TopLogprobs(
        tokens=generator.integers(0, 99, TOKENS).astype(np.int32),
        next_logprobs=logprobs[:, 1],
        top_ids=generator.integers(0, 99, (TOKENS - 1, TOP)).astype(np.int32),
        top_logprobs=logprobs,
    )


def row(number: int, seed: int | None = None, *, change: float = 0.0) -> tuple[RequestKey, Response]:
    """A response to a window; `change` is added to each log-probability of the text."""
    found = window(number if seed is None else seed)
    found = TopLogprobs(**{**vars(found), "next_logprobs": found.next_logprobs + np.float32(change)})
    digest = digest_of_arguments("top_logprobs", [number])
    response = Response(loglikelihood=found.loglikelihood, cut_tokens=0, logprobs=found.packed())
    return RequestKey(PANEL_TASK, "1", number, 0, 0, digest), response


def test_a_packed_window_is_read_back() -> None:
    """Every array has its values, types and shapes; other bytes are refused."""
    own = window(3)
    found = unpack(own.packed())
    for name, values in vars(own).items():
        assert np.array_equal(getattr(found, name), values)
        assert getattr(found, name).dtype == values.dtype
    for damaged in (b"", own.packed()[:-1], own.packed() + b"\0"):
        with pytest.raises(SegmentCorruptError, match="are not a window of"):
            unpack(damaged)


def test_tokens_of_equal_probability_are_sorted_by_id() -> None:
    """The order does not depend on the device."""
    own = TopLogprobs(
        tokens=np.zeros(2, np.int32),
        next_logprobs=np.zeros(1, np.float32),
        top_ids=np.array([[7, 3, 5]], np.int32),
        top_logprobs=np.array([[-1.0, -0.5, -1.0]], np.float32),
    )
    assert own.sorted().top_ids.tolist() == [[3, 5, 7]]


def test_results_have_arrays(tmp_path: Path, write: Any, key: Any) -> None:
    """Windows and ordinary responses go through segments, compaction and merge; plain h5py reads the arrays."""
    folder = tmp_path / "u"
    rows = [row(number) for number in (2, 0, 1)]
    other = (key(0), Response(-1.5, is_greedy=True))
    for one in (rows[:2], [rows[2], other], rows[:1]):
        write(folder, one, addresses=ADDRESSES)
    compact(folder, is_complete=True)
    index = load_index([folder], expect=ADDRESSES)
    assert (index.responses, index.duplicates, index.conflicts) == ({**dict(rows), other[0]: other[1]}, 1, ())
    assert index.responses[rows[0][0]].kind is ResponseKind.TOP_LOGPROBS

    path = tmp_path / "results.h5"
    merge = merge_report([("v", list(index.responses), index)])
    part = VariantResults(variant="v", index=index, scores=[], provenance={})
    write_results(path, run="r", provenance={}, variants=[part], merge=merge)

    assert read_responses(path, "v") == index.responses
    with h5py.File(path) as file:
        group = file[f"responses/v/{PANEL_TASK}"]
        assert np.array_equal(group["top_logprobs"][...], np.stack([window(n).top_logprobs for n in range(3)]))
        assert np.array_equal(group["tokens"][...], np.stack([window(n).tokens for n in range(3)]))
        assert {name: (group[name].shape, group[name].dtype.str, group[name].compression) for name in group} | {
            "top_ids": ((3, TOKENS - 1, TOP), "<i4", "gzip"),
            "next_logprobs": ((3, TOKENS - 1), "<f4", "gzip"),
        } == {name: (group[name].shape, group[name].dtype.str, group[name].compression) for name in group}
        assert not len(group["text"])
    with open_results(path) as results:
        panel = results.panel("v", PANEL_TASK)
        assert panel
        assert panel.window.tolist() == [0, 1, 2]
        assert results.panel("v", "other") is None


@pytest.mark.parametrize(("change", "conflicts"), [(0.0009, 0), (0.01, 1)])
def test_a_window_may_vary_per_position(tmp_path: Path, write: Any, change: float, conflicts: int) -> None:
    """A backend's tolerance is that of one log-likelihood; the window that is read again is a sum over positions."""
    for changed in (0.0, change):
        write(tmp_path / "u", [row(0, change=changed)], addresses=ADDRESSES, varies=0.001)
    index = load_index([tmp_path / "u"], expect=ADDRESSES)
    assert (len(index.conflicts), index.varied) == (conflicts, 1 - conflicts)


def test_a_conflict_is_plain_json(tmp_path: Path, write: Any, key: Any) -> None:
    """Packed numbers are named by their digest; conflicts of other responses have the fields that they always had."""
    other = key(0)
    write(tmp_path / "u", [row(0, 1), (other, Response(-1.0, is_greedy=True))], addresses=ADDRESSES)
    write(tmp_path / "u", [row(0, 2), (other, Response(-2.0, is_greedy=True))], addresses=ADDRESSES)
    index = load_index([tmp_path / "u"], expect=ADDRESSES)
    document = merge_report([("v", [], index)]).as_json()
    ordinary, panel = json.loads(json.dumps(document))["conflict_details"]
    assert list(ordinary["claims"][0]) == ["file", "loglikelihood", "is_greedy", "text", "cut_tokens"]
    assert len({claim["logprobs_sha256"] for claim in panel["claims"]}) == 2
