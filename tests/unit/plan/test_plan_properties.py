"""Plans for random clusters and manifests: no plan exceeds its nodes, and a refusal has numbers and a suggestion."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcq.catalog.gpus import gpu_names
from hpcq.catalog.models import model_ids
from hpcq.core.errors import ManifestError
from hpcq.core.work_records import Model, UnitKind
from hpcq.launch.build_array_spec import build_array_spec
from hpcq.manifest import Manifest, check_manifest, resolve
from hpcq.manifest.resolved import ResolvedManifest
from hpcq.plan.arrays import make_arrays
from hpcq.plan.planner import make_plan

GROUPED = ("gptq-w4a16", "awq-w4a16")
SCHEMES = ("bf16", "fp8", "fp8-dynamic", "gptq-w8a16", "smoothquant-w8a8", *GROUPED)
_YEARS = 10 * 366 * 24 * 60  # in minutes


@st.composite
def classes(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a class of a profile; one in eight has no GPUs."""
    gpus = draw(st.sampled_from((0, 1, 2, 3, 4, 8, 8, 16)))
    found: dict[str, Any] = {
        "nodes": draw(st.integers(1, 4)),
        "cpus_per_node": draw(st.integers(1, 128)),
        "memory_gib": draw(st.sampled_from((100, 500, 1000, 2000, 2000))),
        "throttle": draw(st.none() | st.integers(1, 8)),
        "max_minutes": draw(st.none() | st.integers(30, 3000)),
        "roles": draw(
            st.sampled_from((("evaluate", "quantize", "merge"), ("evaluate", "merge"), ("quantize", "evaluate")))
        ),
    }
    if gpus:
        found |= {"gpu": draw(st.sampled_from(gpu_names())), "gpus_per_node": gpus}
    if draw(st.booleans()):
        found["cpus_per_unit"] = draw(st.integers(1, found["cpus_per_node"]))
    if draw(st.integers(0, 7)) == 0:
        found["memory_gib_per_unit"] = draw(st.sampled_from((1, 16, 32)))
    return found


@st.composite
def runs(draw: st.DrawFn, *, has_time: bool = False) -> ResolvedManifest:
    """Draw a valid manifest on a cluster; has_time: its time limits allow everything."""
    drawn = draw(st.lists(classes(), min_size=1, max_size=4))
    for one in drawn if has_time else ():
        one.pop("max_minutes", None)
    drawn[0]["roles"] = ("evaluate", "quantize", "merge")
    backend = draw(st.sampled_from(("vllm", "accelerate", "synthetic")))
    evaluate: dict[str, Any] = {"backend": backend, "shards": draw(st.sampled_from(("auto", 1, 2, 3)))}
    if draw(st.booleans()):
        evaluate["max_length"] = draw(st.sampled_from((1024, 2048)))
    evaluate["offload"] = draw(st.sampled_from(("none", "none", "cpu", "disk")))
    if backend == "synthetic":
        evaluate["synthetic"] = {"emulate": draw(st.sampled_from((None, "vllm", "accelerate")))}
    manifest = Manifest.model_validate(
        {
            "run": {"name": "any"},
            "cluster": {
                "profile": {
                    "name": "any",
                    "scheduler": "slurm",
                    "slurm": {"time_limit_minutes": _YEARS if has_time else draw(st.integers(30, 3000))},
                    "filesystem": {"read_gb_per_s": 1000.0 if has_time else None},
                    "gpu_classes": {f"class{index}": one for index, one in enumerate(drawn)},
                }
            },
            "models": [
                {"id": name}
                for name in draw(st.lists(st.sampled_from(model_ids()), min_size=1, max_size=3, unique=True))
            ],
            "schemes": {"use": draw(st.lists(st.sampled_from(SCHEMES), min_size=1, max_size=3, unique=True))},
            "tasks": {"use": ["arc_challenge"]},
            "evaluate": evaluate,
        }
    )
    try:
        return resolve(check_manifest(manifest))
    except ManifestError:  # groups that do not divide, and the like
        schemes = manifest.schemes.model_copy(update={"use": ("bf16",)})
        return resolve(check_manifest(manifest.model_copy(update={"schemes": schemes})))


MANY = settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])


@given(resolved=runs())
@MANY
def test_no_plan_exceeds_what_a_cluster_has(resolved: ResolvedManifest) -> None:
    """GPUs, GPU memory, CPUs, host memory, nodes and time limit of each array do not exceed its class."""
    plan = make_plan(resolved)
    arrays = make_arrays(plan.units, resolved.profile)
    assert sorted(unit.id for array in arrays for unit in array.units) == sorted(unit.id for unit in plan.units)
    for array in arrays:
        offer = resolved.profile.gpu_classes[array.shape.gpu_class]
        spec = build_array_spec("any", array, resolved.profile)
        assert 1 <= spec.nodes <= offer.nodes
        assert 0 <= spec.gpus_per_node <= offer.gpus_per_node
        assert 1 <= spec.cpus_per_unit <= offer.cpus_per_node
        assert (spec.memory_gib or 0) <= offer.memory_gib
        assert spec.time_limit_minutes <= (offer.max_minutes or spec.time_limit_minutes)
        assert spec.time_limit_minutes <= resolved.profile.slurm.time_limit_minutes
        assert spec.throttle == offer.throttle or (spec.nodes > 1 and spec.throttle and spec.throttle >= 1)
        assert (spec.throttle or 1) <= (offer.throttle or spec.throttle or 1)
        assert array.shape.tensor_parallel <= max(1, array.shape.gpus_per_node)
        assert array.shape.pipeline_parallel in (1, array.shape.nodes)
        if array.kind in (UnitKind.EVALUATE, UnitKind.QUANTIZE):
            assert array.kind.value in offer.roles
        for unit in array.units:
            if unit.memory_gib_per_gpu is not None and offer.gpu_spec:
                assert unit.memory_gib_per_gpu <= offer.gpu_spec.memory_gib


@given(resolved=runs(has_time=True))  # a time limit would be a second reason with a second suggestion
@MANY
def test_a_refusal_has_a_reason_and_a_suggestion_that_works(resolved: ResolvedManifest) -> None:
    """The reason has numbers. A plan with the suggested scheme, nodes, length, backend or offload has the variant."""
    plan = make_plan(resolved)
    planned = {unit.variant.id for unit in plan.units if unit.variant and unit.kind is UnitKind.EVALUATE}
    for refusal in plan.refused:
        assert refusal.variant not in planned
        assert re.search(r"\d", refusal.reason.removeprefix(f"{refusal.variant}:"))
        model = next(model for model, _ in resolved.pairs if refusal.variant and refusal.variant.startswith(model.slug))
        changed = _apply_first(resolved, model, refusal.suggestion)
        if changed is None:
            assert refusal.suggestion.startswith("a GPU class with more memory")
            continue
        again = make_plan(changed)
        assert any(unit.variant and unit.variant.model.slug == model.slug for unit in again.units), refusal
        if changed.pairs == resolved.pairs:
            named = str(refusal.variant).rpartition("--")[0]  # another calibration changes the digest
            assert named in {unit.variant.id.rpartition("--")[0] for unit in again.units if unit.variant}


def _apply_first(resolved: ResolvedManifest, model: Model, suggestion: str) -> ResolvedManifest | None:
    """Return the manifest with the first suggestion; None: it cannot be applied."""
    manifest = resolved.manifest
    first = suggestion.split(" or ", maxsplit=1)[0]
    profile = resolved.profile
    change: dict[str, Any] = {}
    if nodes := re.fullmatch(r"\d+ more nodes? of (\S+) \(nodes = (\d+)\)", first):
        offer = profile.gpu_classes[nodes[1]].model_copy(update={"nodes": int(nodes[2])})
        larger = profile.model_copy(update={"gpu_classes": {**profile.gpu_classes, nodes[1]: offer}})
        change = {"cluster": manifest.cluster.model_copy(update={"profile": larger})}
    elif unlimited := re.fullmatch(r"remove gpu_classes\.(\S+)\.memory_gib_per_unit from the profile", first):
        offer = profile.gpu_classes[unlimited[1]].model_copy(update={"memory_gib_per_unit": None})
        larger = profile.model_copy(update={"gpu_classes": {**profile.gpu_classes, unlimited[1]: offer}})
        change = {"cluster": manifest.cluster.model_copy(update={"profile": larger})}
    elif length := re.fullmatch(r"evaluate\.max_length = (\d+)", first):
        change = {"evaluate": manifest.evaluate.model_copy(update={"max_length": int(length[1])})}
    elif samples := re.fullmatch(r"calibration\.samples = (\d+)", first):
        change = {"calibration": manifest.calibration.model_copy(update={"samples": int(samples[1])})}
    elif batch := re.fullmatch(r"evaluate\.batch_size = (\d+)", first):
        change = {"evaluate": manifest.evaluate.model_copy(update={"batch_size": int(batch[1])})}
    elif first == "evaluate.backend = 'accelerate'":
        change = {"evaluate": manifest.evaluate.model_copy(update={"backend": "accelerate", "synthetic": None})}
    elif offload := re.fullmatch(r"(evaluate\.backend = 'accelerate' with )?evaluate\.offload = '(\w+)'", first):
        own = {"backend": "accelerate", "synthetic": None} if offload[1] else {}
        change = {"evaluate": manifest.evaluate.model_copy(update={"offload": offload[2], **own})}
    elif re.fullmatch(r"[a-z0-9-]+", first):
        models = tuple(entry for entry in manifest.models if entry.id == model.id)
        change = {"models": models, "schemes": manifest.schemes.model_copy(update={"use": (first,)})}
    return resolve(check_manifest(manifest.model_copy(update=change))) if change else None
