"""The draft profile from sinfo's output: node classes, partitions, and GPUs by their names in the catalog."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcq.catalog.gpu_aliases import match_gpu
from hpcq.catalog.gpus import gpu_names
from hpcq.core.errors import SetupError
from hpcq.manifest.profiles import Profile, load_profile
from hpcq.manifest.templates import draft_profile
from hpcq.slurm.sinfo import group_nodes, parse_nodes

GPU_NODE = "gpu:h100:8(S:0-1)|96|1031000|h100,ib"


@pytest.fixture(autouse=True)
def _separate_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in an empty folder."""
    monkeypatch.chdir(tmp_path)


def drafted_profile(*lines: str) -> Profile:
    """Write the profile for these lines of sinfo, and load it."""
    Path("p.toml").write_text(draft_profile("here", group_nodes(parse_nodes("\n".join(lines)))), encoding="utf-8")
    return load_profile("p.toml", Path())


def line(node: str, partition: str, what: str = GPU_NODE, limit: str = "1-00:00:00", state: str = "idle") -> str:
    """Return a node in a partition, as `sinfo --Node` prints it in our format."""
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
def test_a_clusters_name_for_a_gpu_matches_the_catalog(words: list[str], gpu: str, *, is_sure: bool) -> None:
    """Types as drivers and administrators write them match one GPU, or the likeliest one with a note to check."""
    found = match_gpu(*words)
    assert found
    assert (found.gpu, found.ambiguity is None) == (gpu, is_sure)


@pytest.mark.parametrize(
    "word", ["gh200", "gb200", "k80", "l40", "a10g", "mi300x", "a100_3g.20gb", "quadro_rtx_6000", ""]
)
def test_similar_gpus_do_not_match(word: str) -> None:
    """A GH200 is not an H200, an A10G is not an A10, and a MIG slice is not a GPU."""
    assert match_gpu(word) is None


def test_every_gpu_of_the_catalog_matches_its_own_name() -> None:
    """A new row in gpus.toml requires its aliases."""
    for name in gpu_names():
        found = match_gpu(name)
        assert found
        assert found.gpu == name


def test_nodes_in_several_partitions_are_one_class() -> None:
    """Of partitions with the same nodes, the one with the longest limit is used; a comment lists the others."""
    nodes = [
        line(node, partition, limit=limit)
        for node in ("n1", "n2")
        for partition, limit in (("short*", "30:00"), ("long", "2-00:00:00"))
    ]
    node_class = drafted_profile(*nodes).gpu_classes["h100"]
    assert (node_class.partition, node_class.max_minutes, node_class.nodes, node_class.gpus_per_node) == (
        "long",
        2880,
        2,
        8,
    )
    assert "CHECK: short has these nodes" in Path("p.toml").read_text()


def test_other_nodes_in_another_partition_are_a_separate_class() -> None:
    """Every node is counted once; only partitions with all nodes of a class are in its comment."""
    partitions = {"gpuA": "1234", "gpuB": "5678", "debug": "1", "wide": "4569", "cpuA": "c", "cpuB": "d"}
    plain = "(null)|64|256000|(null)"
    rows = [
        line(f"n{node}", partition, plain if node.isalpha() else GPU_NODE)
        for partition, nodes in partitions.items()
        for node in nodes
    ]
    node_classes = drafted_profile(*rows).gpu_classes
    assert {name: (node_class.partition, node_class.nodes) for name, node_class in node_classes.items()} == {
        "h100": ("gpuA", 4), "h100-gpub": ("gpuB", 4), "h100-wide": ("wide", 1),
        "cpu": ("cpuA", 1), "cpu-cpub": ("cpuB", 1),
    }  # fmt: skip
    assert "these nodes too" not in Path("p.toml").read_text()


def test_of_equal_partitions_the_default_is_used() -> None:
    """The default partition is used if limits and nodes are the same."""
    for default in ("a", "b"):
        rows = [line("n1", name + ("*" if name == default else "")) for name in ("a", "b")]
        assert drafted_profile(*rows).gpu_classes["h100"].partition == default


def test_nodes_out_of_service_are_not_counted() -> None:
    """Down, drained and unresponsive nodes are not counted; nodes in power saving are."""
    states = ("down", "drain", "drng", "idle*", "inval", "idle~", "mix", "alloc")
    rows = [line(f"n{number}", "gpu", state=state) for number, state in enumerate(states)]
    assert drafted_profile(*rows).gpu_classes["h100"].nodes == 3
    assert "5 more are not available now" in Path("p.toml").read_text()


def test_a_class_has_the_resources_of_its_smallest_node() -> None:
    """Nodes with the same GPUs and different memory are one class, with the minimum."""
    node_class = drafted_profile(
        line("n1", "gpu", "gpu:h100:8|96|1031000|h100"), line("n2", "gpu", "gpu:h100:8|64|515000|h100")
    ).gpu_classes["h100"]
    assert (node_class.nodes, node_class.cpus_per_node, node_class.memory_gib) == (2, 64, 502)


def test_nodes_without_gpus_merge() -> None:
    """CPU nodes have only the role merge; GPU nodes evaluate and quantize."""
    profile = drafted_profile(line("n1", "gpu"), line("c1", "cpu", "(null)|64|256000|(null)", limit="infinite"))
    assert profile.gpu_classes["h100"].roles == ("evaluate", "quantize")
    assert profile.gpu_classes["cpu"].roles == ("merge",)
    assert profile.gpu_classes["cpu"].max_minutes is None


def test_a_cluster_without_gpus_has_one_class_with_all_roles() -> None:
    """Without GPUs, the CPU class has all roles."""
    assert drafted_profile(line("c1", "cpu*", "(null)|64|256000|(null)")).gpu_classes["cpu"].roles == (
        "evaluate", "quantize", "merge",
    )  # fmt: skip


def test_gpus_without_a_type_are_requested_by_feature() -> None:
    """gpu:4 on nodes with the feature a100-40: the feature is requested, not a type."""
    node_class = drafted_profile(line("n1", "gpu", "gpu:4|64|500000|ib,a100-40")).gpu_classes["a100-40"]
    assert (node_class.gpu, node_class.gres_type, node_class.features) == ("A100-40", None, "a100-40")


def test_gpus_without_a_type_are_identified_by_feature() -> None:
    """gpu:4 on nodes with different GPUs or GPU memory: each is a class, requested by its feature."""
    words = ("a100,ib", "v100,ib", "a100,a100-40")
    rows = [line(f"n{node}-{word}", "gpu", f"gpu:4|64|500000|{word}") for node in (1, 2) for word in words]
    node_classes = drafted_profile(*rows).gpu_classes
    assert {name: (each.gpu, each.features, each.nodes) for name, each in node_classes.items()} == {
        "a100-80": ("A100-80", "a100", 2), "v100-32": ("V100-32", "v100", 2), "a100-40": ("A100-40", "a100-40", 2),
    }  # fmt: skip


def test_different_gpus_per_node_are_separate_classes() -> None:
    """Different numbers of GPUs per node, and two types in one node, give separate classes."""
    profile = drafted_profile(line("n1", "gpu"), line("n2", "gpu", "gpu:h100:4,gpu:a6000:2,nvme:1|64|500000|x"))
    assert {name: node_class.gpus_per_node for name, node_class in profile.gpu_classes.items()} == {
        "h100": 8, "h100-4": 4, "a6000": 2,
    }  # fmt: skip


def test_unusable_nodes_are_skipped_and_reported() -> None:
    """MIG slices and unknown GPUs are in a comment with a fix; without other nodes it is an error."""
    odd = [line("n2", "mig", "gpu:a100_3g.20gb:4|64|500000|x"), line("n3", "old", "gpu:k80:4|64|500000|x")]
    assert set(drafted_profile(line("n1", "gpu"), *odd).gpu_classes) == {"h100"}
    text = Path("p.toml").read_text()
    assert "gpu:a100_3g.20gb:4: MIG slices are not supported" in text
    assert "gpu:k80:4: this GPU is not in the catalog; add it to hpcq/catalog/gpus.toml" in text
    with pytest.raises(SetupError, match="no nodes of 'here' that hpcq can use"):
        drafted_profile(*odd)
    with pytest.raises(SetupError, match="It lists none"):
        drafted_profile()


def test_the_maximum_nodes_per_job_limit_a_class() -> None:
    """With MaxNodes 2 in a partition of five nodes, the class has two nodes."""
    rows = [line(f"n{number}", "gpu").replace("1-infinite", "1-2") for number in range(5)]
    assert drafted_profile(*rows).gpu_classes["h100"].nodes == 2
