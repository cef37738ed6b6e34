"""Content addresses: fields that can change a result change the address, all others do not."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcq.core.addressing import address_of, canonical
from hpcq.core.work_records import Calibration, EvaluateWork, Model, Scheme, Shard, Task, Variant

TEXT = st.text(min_size=1, max_size=12)
HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
VERSIONS = st.dictionaries(TEXT, TEXT, max_size=3).map(lambda found: tuple(sorted(found.items())))

MODELS = st.builds(
    Model, id=TEXT, revision=st.none() | TEXT, digest=st.none() | HEX, trust_remote_code=st.booleans(), path=TEXT
)
SCHEMES = st.builds(
    Scheme,
    name=TEXT,
    tool=st.sampled_from(["llmcompressor", "synthetic"]),
    method=st.sampled_from(["rtn", "gptq", "awq"]),
    weights=st.sampled_from(["int4", "int8", "fp8_e4m3"]),
    activations=st.sampled_from(["bf16", "int8"]),
    group_size=st.none() | st.integers(1, 256),
)
CALIBRATIONS = st.builds(
    Calibration,
    digest=HEX,
    samples=st.integers(1, 512),
    sequence_length=st.integers(1, 4096),
    seed=st.integers(0, 9),
    dataset=TEXT,
    path=TEXT,
)
VARIANTS = st.builds(Variant, model=MODELS, scheme=SCHEMES, calibration=st.none() | CALIBRATIONS, versions=VERSIONS)
TASKS = st.builds(
    Task,
    name=TEXT,
    num_fewshot=st.none() | st.integers(0, 25),
    limit=st.none() | st.integers(1, 1000),
    data_digest=st.none() | HEX,
    data_path=st.none() | TEXT,
)
WORKS = st.builds(
    EvaluateWork,
    variant=VARIANTS,
    tasks=st.lists(TASKS, min_size=1, max_size=3).map(tuple),
    backend=st.sampled_from(["accelerate", "vllm"]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    versions=VERSIONS,
    seed=st.integers(0, 5),
    checkpoint_path=TEXT,
    segments_path=TEXT,
)

CANNOT_CHANGE_A_RESULT = {
    "checkpoint_path": "/elsewhere",
    "segments_path": "/elsewhere",
    "shard": Shard(index=3, count=7),
    "batch_size": 64,
    "flush_interval_s": 300.0,
    "device": "cuda",
    "synthetic_options": (("request_seconds", 1.0),),
}


@given(WORKS, st.sampled_from(sorted(CANNOT_CHANGE_A_RESULT)))
def test_paths_shards_and_speed_do_not_change_the_address(work: EvaluateWork, field: str) -> None:
    """Paths, shard, batch size, flush interval, device and pace are not part of an evaluation's address."""
    moved = dataclasses.replace(work, **{field: CANNOT_CHANGE_A_RESULT[field]})
    assert moved.address == work.address
    assert [moved.task_address(task) for task in moved.tasks] == [work.task_address(task) for task in work.tasks]


@given(WORKS)
def test_labels_do_not_change_the_address(work: EvaluateWork) -> None:
    """The name of a scheme and the paths of model, text and items are not part of an address."""
    variant = work.variant
    renamed = dataclasses.replace(
        variant,
        model=dataclasses.replace(variant.model, path="/moved", notes=("a caveat",)),
        scheme=dataclasses.replace(variant.scheme, name="another-name", needs_calibration=True),
        calibration=variant.calibration
        and dataclasses.replace(variant.calibration, dataset="another-name", path="/moved"),
    )
    tasks = tuple(dataclasses.replace(task, data_path="/moved") for task in work.tasks)
    assert renamed.address == variant.address
    assert dataclasses.replace(work, variant=renamed, tasks=tasks).address == work.address


@given(VARIANTS)
def test_a_model_with_a_digest_is_identified_by_its_digest_alone(variant: Variant) -> None:
    """Two ids of the same weights share checkpoints; without a digest, id and revision identify a model."""
    other = dataclasses.replace(variant, model=dataclasses.replace(variant.model, id=variant.model.id + "x"))
    assert (other.address == variant.address) == (variant.model.digest is not None)


def _changed(value: Any) -> Any:
    """Return a different value of the same type."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
        case tuple():
            return (*value, ("added", "1"))
        case None:
            return "x"
    raise TypeError(type(value))


def _addressed(record: Any) -> list[str]:
    return [
        item.name
        for item in dataclasses.fields(record)
        if item.metadata.get("addressed", True) and item.name not in ("kind", "variant", "tasks", "model", "scheme")
    ]


@given(WORKS, st.data())
def test_every_addressed_field_of_an_evaluation_changes_its_address(work: EvaluateWork, data: st.DataObject) -> None:
    """Backend, dtype, tool versions, seed and options each change the address of every response."""
    field = data.draw(st.sampled_from(_addressed(work)))
    other = dataclasses.replace(work, **{field: _changed(getattr(work, field))})
    assert other.address != work.address
    assert other.task_address(work.tasks[0]) != work.task_address(work.tasks[0])


@given(SCHEMES, st.data())
def test_every_addressed_field_of_a_scheme_changes_the_checkpoint_address(scheme: Scheme, data: st.DataObject) -> None:
    """Bits, granularity, group size, symmetry, damping and so on each lead to another checkpoint."""
    field = data.draw(st.sampled_from(_addressed(scheme)))
    variant = Variant(model=Model(id="m"), scheme=scheme)
    other = dataclasses.replace(scheme, **{field: _changed(getattr(scheme, field))})
    assert dataclasses.replace(variant, scheme=other).address != variant.address


@given(CALIBRATIONS, st.data())
def test_every_addressed_field_of_the_calibration_set_changes_the_checkpoint_address(
    calibration: Calibration, data: st.DataObject
) -> None:
    """Text, samples, length and seed of the calibration set each lead to another checkpoint."""
    field = data.draw(st.sampled_from(_addressed(calibration)))
    other = dataclasses.replace(calibration, **{field: _changed(getattr(calibration, field))})
    assert address_of(other) != address_of(calibration)


@given(TASKS, WORKS)
def test_adding_a_task_does_not_change_the_addresses_of_other_tasks(task: Task, work: EvaluateWork) -> None:
    """Responses to a task are reused when other tasks are added to the evaluation."""
    more = dataclasses.replace(work, tasks=(*work.tasks, task))
    assert more.task_address(work.tasks[0]) == work.task_address(work.tasks[0])


def test_addresses_are_frozen() -> None:
    """A release that changed addresses would orphan all existing checkpoints and responses."""
    variant = Variant(
        model=Model(id="m", digest="0" * 64),
        scheme=Scheme(name="s", tool="llmcompressor", method="gptq", weights="int4", activations="bf16", group_size=64),
        calibration=Calibration(digest="1" * 64, samples=8, sequence_length=16),
        versions=(("torch", "2.13.0"),),
    )
    assert variant.id == "m--s--" + variant.address[:12]
    assert variant.address == "261aa77cebcd9e25001bfd42c218568630d35f6618b37b3186ed2331cfb7928a"


def test_a_value_without_canonical_form_is_rejected() -> None:
    """A set has no order and therefore no address."""
    with pytest.raises(TypeError, match="set has no canonical form"):
        canonical({1, 2})
