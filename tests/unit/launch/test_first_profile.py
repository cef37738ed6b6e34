"""A first profile from what sinfo prints: kinds of nodes, the partition to ask for, GPUs by the catalog's names."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcq.catalog.gpu_aliases import guess_gpu
from hpcq.catalog.gpus import gpu_names
from hpcq.core.errors import SetupError
from hpcq.manifest.first_profile import profile_text
from hpcq.manifest.profiles import Profile, load_profile
from hpcq.slurm.sinfo import kinds_of, read_nodes

GPU_NODE = "gpu:h100:8(S:0-1)|96|1031000|h100,ib"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Profiles are written where the test works."""
    monkeypatch.chdir(tmp_path)


def profile_of(*lines: str) -> Profile:
    """The profile that is written for nodes of these lines of sinfo, loaded again from its file."""
    Path("p.toml").write_text(profile_text("here", kinds_of(read_nodes("\n".join(lines)))), encoding="utf-8")
    return load_profile("p.toml", Path())


def line(node: str, partition: str, what: str = GPU_NODE, limit: str = "1-00:00:00", state: str = "idle") -> str:
    """A node in a partition, as `sinfo --Node` prints it in our format."""
    return f"{node}|{partition}|{what}|{limit}|1-infinite|up|{state}"


@pytest.mark.parametrize(
    ("words", "gpu", "is_sure"),
    [
        (["h100"], "H100-80", True),
        (["nvidia_h100_80gb_hbm3"], "H100-80", True),
        (["nvidia_h200"], "H200-141", True),
        (["a100"], "A100-80", False),
        (["nvidia_a100-sxm4-40gb"], "A100-40", True),
        (["a100", "a100-80"], "A100-80", True),
        (["tesla_v100-sxm2-16gb"], "V100-16", True),
        (["v100"], "V100-32", False),
        (["rtx6000ada"], "RTX6000Ada-48", True),
        (["nvidia_rtx_6000_ada_generation"], "RTX6000Ada-48", True),
        (["rtx_a6000"], "A6000-48", True),
        (["l40s"], "L40S-48", True),
        (["l4"], "L4-24", True),
        (["a10"], "A10-24", True),
        (["nvidia_geforce_rtx_4090"], "RTX4090-24", True),
        (["b200"], "B200-180", True),
        (["", "ib", "h100"], "H100-80", True),
    ],
)
def test_a_cluster_s_name_for_a_gpu_is_the_catalog_s(words: list[str], gpu: str, *, is_sure: bool) -> None:
    """Types as drivers and administrators write them mean one GPU, or the likelier one with what to check."""
    found = guess_gpu(*words)
    assert found
    assert (found.gpu, found.check is None) == (gpu, is_sure)


@pytest.mark.parametrize(
    "word", ["gh200", "gb200", "k80", "l40", "a10g", "mi300x", "a100_3g.20gb", "quadro_rtx_6000", ""]
)
def test_what_resembles_a_gpu_of_the_catalog_is_not_taken_for_it(word: str) -> None:
    """A Grace Hopper is no H200, an A10G no A10, and a slice no GPU."""
    assert guess_gpu(word) is None


def test_every_gpu_of_the_catalog_is_found_by_its_own_name() -> None:
    """A new row in gpus.toml needs its words."""
    for name in gpu_names():
        found = guess_gpu(name)
        assert found
        assert found.gpu == name


def test_nodes_in_several_partitions_are_one_class() -> None:
    """Of partitions over the same nodes the longest limit is taken, and named with the others."""
    nodes = [
        line(node, partition, limit=limit)
        for node in ("n1", "n2")
        for partition, limit in (("short*", "30:00"), ("long", "2-00:00:00"))
    ]
    offer = profile_of(*nodes).gpu_classes["h100"]
    assert (offer.partition, offer.max_minutes, offer.nodes, offer.gpus_per_node) == ("long", 2880, 2, 8)
    assert "CHECK: short has these nodes" in Path("p.toml").read_text()


def test_other_nodes_in_another_partition_are_a_class_of_their_own() -> None:
    """No node is lost, none is counted twice, and only a partition that has all of a class's nodes is named with it."""
    places = {"gpuA": "1234", "gpuB": "5678", "debug": "1", "wide": "4569", "cpuA": "c", "cpuB": "d"}
    plain = "(null)|64|256000|(null)"
    rows = [
        line(f"n{node}", partition, plain if node.isalpha() else GPU_NODE)
        for partition, nodes in places.items()
        for node in nodes
    ]
    offers = profile_of(*rows).gpu_classes
    assert {name: (offer.partition, offer.nodes) for name, offer in offers.items()} == {
        "h100": ("gpuA", 4), "h100-gpub": ("gpuB", 4), "h100-wide": ("wide", 1),
        "cpu": ("cpuA", 1), "cpu-cpub": ("cpuB", 1),
    }  # fmt: skip
    assert "these nodes, too" not in Path("p.toml").read_text()


def test_of_equal_partitions_the_default_is_taken() -> None:
    """Where limits and nodes are the same."""
    for default in ("a", "b"):
        rows = [line("n1", name + ("*" if name == default else "")) for name in ("a", "b")]
        assert profile_of(*rows).gpu_classes["h100"].partition == default


def test_nodes_out_of_service_are_not_counted() -> None:
    """Down, drained and silent ones; those that sleep to save power are."""
    states = ("down", "drain", "drng", "idle*", "inval", "idle~", "mix", "alloc")
    rows = [line(f"n{number}", "gpu", state=state) for number, state in enumerate(states)]
    assert profile_of(*rows).gpu_classes["h100"].nodes == 3
    assert "5 more cannot be had now" in Path("p.toml").read_text()


def test_a_class_promises_what_its_weakest_node_has() -> None:
    """Nodes with the same GPUs and different memory are one class, with the smaller numbers."""
    offer = profile_of(
        line("n1", "gpu", "gpu:h100:8|96|1031000|h100"), line("n2", "gpu", "gpu:h100:8|64|515000|h100")
    ).gpu_classes["h100"]
    assert (offer.nodes, offer.cpus_per_node, offer.memory_gib) == (2, 64, 502)


def test_nodes_without_gpus_merge() -> None:
    """They get the role alone; the GPU nodes are left to evaluate and to quantize."""
    profile = profile_of(line("n1", "gpu"), line("c1", "cpu", "(null)|64|256000|(null)", limit="infinite"))
    assert profile.gpu_classes["h100"].roles == ("evaluate", "quantize")
    assert profile.gpu_classes["cpu"].roles == ("merge",)
    assert profile.gpu_classes["cpu"].max_minutes is None


def test_a_cluster_without_gpus_does_everything_on_its_cores() -> None:
    """No GPU anywhere: one class with all roles."""
    assert profile_of(line("c1", "cpu*", "(null)|64|256000|(null)")).gpu_classes["cpu"].roles == (
        "evaluate", "quantize", "merge",
    )  # fmt: skip


def test_gpus_without_a_type_are_told_by_the_nodes_feature() -> None:
    """gpu:4 on nodes with the feature a100-40: the feature is asked for, no type is."""
    offer = profile_of(line("n1", "gpu", "gpu:4|64|500000|ib,a100-40")).gpu_classes["a100-40"]
    assert (offer.gpu, offer.gres_type, offer.features) == ("A100-40", None, "a100-40")


def test_gpus_without_a_type_are_of_the_kind_that_their_nodes_features_tell() -> None:
    """gpu:4 on nodes of two kinds of GPUs and of two memories of one: each is a class, asked for by what tells it."""
    words = ("a100,ib", "v100,ib", "a100,a100-40")
    rows = [line(f"n{node}-{word}", "gpu", f"gpu:4|64|500000|{word}") for node in (1, 2) for word in words]
    offers = profile_of(*rows).gpu_classes
    assert {name: (offer.gpu, offer.features, offer.nodes) for name, offer in offers.items()} == {
        "a100-80": ("A100-80", "a100", 2), "v100-32": ("V100-32", "v100", 2), "a100-40": ("A100-40", "a100-40", 2),
    }  # fmt: skip


def test_two_kinds_of_nodes_with_one_gpu_are_two_classes() -> None:
    """Four and eight GPUs a node, or two types in one node."""
    profile = profile_of(line("n1", "gpu"), line("n2", "gpu", "gpu:h100:4,gpu:a6000:2,nvme:1|64|500000|x"))
    assert {name: offer.gpus_per_node for name, offer in profile.gpu_classes.items()} == {
        "h100": 8, "h100-4": 4, "a6000": 2,
    }  # fmt: skip


def test_what_cannot_be_used_is_left_out_and_told() -> None:
    """Slices and unknown GPUs are named in the file with what to do; where nothing else is, it is an error."""
    odd = [line("n2", "mig", "gpu:a100_3g.20gb:4|64|500000|x"), line("n3", "old", "gpu:k80:4|64|500000|x")]
    assert set(profile_of(line("n1", "gpu"), *odd).gpu_classes) == {"h100"}
    text = Path("p.toml").read_text()
    assert "gpu:a100_3g.20gb:4: slices of GPUs (MIG) are not planned with" in text
    assert "gpu:k80:4: the catalog has no such GPU; add a row to hpcq/catalog/gpus.toml" in text
    with pytest.raises(SetupError, match="no nodes of 'here' that hpcq can use"):
        profile_of(*odd)
    with pytest.raises(SetupError, match="it lists none"):
        profile_of()


def test_a_partition_s_largest_job_bounds_a_class() -> None:
    """MaxNodes 2 over five nodes: no unit may take more than two."""
    rows = [line(f"n{number}", "gpu").replace("1-infinite", "1-2") for number in range(5)]
    assert profile_of(*rows).gpu_classes["h100"].nodes == 2
