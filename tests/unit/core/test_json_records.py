"""Records as JSON: what is read equals what was written, and everything else is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hpcq.core.hub_cache import HubCache, RepoKind
from hpcq.core.json_records import InvalidRecordError, from_json, to_json
from hpcq.core.node_context import NodeContext
from hpcq.core.work_records import (
    Calibration,
    Checkpoint,
    EvaluateWork,
    MergeWork,
    Model,
    Offload,
    QuantizeWork,
    Scheme,
    Shard,
    StageWork,
    Task,
    Variant,
    Work,
)


@dataclass(frozen=True)
class Record:
    """A record with the kinds of fields that occur."""

    work: Work
    facts: Mapping[str, Any] = field(default_factory=dict)


CACHE = HubCache(hub=Path("/cache/hub"), prepared=Path("/cache/hpcq"))
VARIANT = Variant(
    model=Model(id="a/b", digest="d" * 64, notes=("Größe", "\udcff")),
    scheme=Scheme(name="s", tool="t", method="gptq", weights="int4", activations="bf16", group_size=128, damping=0.01),
    calibration=Calibration(digest=None, samples=4, sequence_length=8),
    versions=(("t", "1.0"),),
    checkpoint=Checkpoint(id="c/d", revision="main"),
)
TASK = Task(name="t", limit=3, data_revisions=(("x", "y"),), cache=CACHE)
EVALUATION = EvaluateWork(
    variant=VARIANT,
    tasks=(TASK,),
    backend="vllm",
    dtype="bfloat16",
    options=(("a", True), ("b", 1), ("c", 1.0), ("d", "text")),
    checkpoint_path="/c",
    segments_path="/s",
    shard=Shard(index=1, count=2),
    flush_interval_s=30,
    node_context=NodeContext(nnodes=2, node_rank=0, address="::1", master_addr="::1", master_port=1),
    offload=Offload(to="cpu", gpu_gib=(1.5, 2), host_gib=None),
)
WORKS: tuple[Work, ...] = (
    StageWork(models=(("a/b", "0"),), refs=((RepoKind.MODEL, "a/b", "0", "main"),), cache=CACHE, segments_path="/s"),
    QuantizeWork(variant=VARIANT, checkpoint_path="/c"),
    EVALUATION,
    MergeWork(run="r", evaluations=(EVALUATION,), segments_path="/s", results_path="/r"),
)


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.kind)
def test_a_record_is_read_as_it_was_written(work: Work) -> None:
    """Also the types of numbers, which decide about content addresses."""
    record = Record(work, {"seconds": 1.0, "nested": {"list": [1, None]}})
    text = to_json(record)
    assert "\n" not in text
    read = from_json(Record, text)
    assert read == record
    assert repr(read) == repr(record)
    if isinstance(work, EvaluateWork) and isinstance(read.work, EvaluateWork):
        assert read.work.address == work.address


@pytest.mark.parametrize(
    ("kind", "document", "problem"),
    [
        (Shard, [], r"Shard: expected an object, found \[\]"),
        (Shard, {"index": "1"}, r"Shard\.index: expected a value of type int, found '1'"),
        (Shard, {"index": True}, r"Shard\.index: expected a value of type int, found True"),
        (Shard, {"index": 1, "__class__": "os.system"}, r"Shard: unknown field '__class__'"),
        (Model, {}, r"Model: the field 'id' is missing"),
        (Model, {"id": "a", "notes": "text"}, r"Model\.notes: expected an array"),
        (Model, {"id": "a", "notes": [1]}, r"Model\.notes\[0\]: expected a value of type str, found 1"),
        (Offload, {"to": "tape"}, r"Offload\.to: expected 'none' or 'cpu' or 'disk', found 'tape'"),
        (Task, {"name": "t", "data_revisions": [["a"]]}, r"data_revisions\[0\]: expected an array of 2"),
        (Record, {"work": {"kind": "evaluate"}}, r"Record\.work: expected one of 4 types"),
    ],
)
def test_another_document_is_refused(kind: type, document: object, problem: str) -> None:
    """The message has the field, the expected type and the value."""
    with pytest.raises(InvalidRecordError, match=problem):
        from_json(kind, json.dumps(document))


def test_text_that_is_no_json_is_refused() -> None:
    """For example, a pickle."""
    with pytest.raises(InvalidRecordError, match="not JSON"):
        from_json(Shard, b"\x80\x04\x95")
