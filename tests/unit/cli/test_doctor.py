"""`hpcq doctor` on a machine without a cluster: planted faults, each with its fix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.command_line import REHEARSAL, Hpcq

PROFILE = """
name = "here"
scheduler = "local"
[gpu_classes.node]
cpus_per_node = 2
memory_gib = 20
[environments.core]
"""
PACKAGED = """
[run]
name = "small"
[cluster]
profile = "local"
[[models]]
id = "HuggingFaceTB/SmolLM2-135M-Instruct"
source = "packages"
[schemes]
use = ["bf16"]
[tasks]
use = ["arc_challenge"]
data = "packages"
"""
HUB = PACKAGED.replace('id = "HuggingFaceTB/SmolLM2-135M-Instruct"\nsource = "packages"', 'id = "acme/none"')


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A planted fault.

    Attributes:
        level: Level of the finding.
        text: Part of its text.
        fix: Part of its fix; of a failed check without one, the text has it.
        manifest: The manifest.
        profile: Lines that are added to the profile, which is then used.
        variables: Environment variables.
        prepare: Called with the working directory.
    """

    level: str
    text: str
    fix: str
    manifest: str = REHEARSAL
    profile: str | None = None
    variables: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[Path], object] = lambda _: None


def write_profile(folder: Path, line: str) -> None:
    """Write the last file that a login shell of the user reads."""
    (folder / "home").mkdir()
    (folder / "home" / ".bash_profile").write_text(f"{line}\n")


FAULTS = {
    "search path": Fault(
        level="warning", text="PYTHONPATH is set", fix="Unset PYTHONPATH.", variables={"PYTHONPATH": "/nowhere"}
    ),
    "cache is a file": Fault(
        level="fail", text="is not a folder", fix="Set HPCQ_CACHE to a folder.", variables={"HPCQ_CACHE": "file/cache"},
        prepare=lambda folder: (folder / "file").write_text(""),
    ),
    "no environment": Fault(
        level="fail", text="core: it does not exist", fix="Run `python3 -m hpcq.core.environments core`.",
        variables={"HPCQ_CACHE": "new"},
    ),
    "folder of others": Fault(
        level="fail", text="shared: can be written by all users", fix="Run `chmod go-w",
        manifest=f'{REHEARSAL}\n[paths]\nruns = "shared/runs"\n',
        prepare=lambda folder: ((folder / "shared").mkdir(), (folder / "shared").chmod(0o777)),
    ),
    "read-only file system": Fault(
        level="fail", text="paths.runs: ", fix="Set paths.runs to a folder",
        manifest=f'{REHEARSAL}\n[paths]\nruns = "/proc/hpcq/runs"\n',
    ),
    "no interpreter": Fault(
        level="fail", text="/nowhere/python does not exist", fix="Correct environments.core.",
        profile='python = "/nowhere/python"',
    ),
    "no libraries": Fault(
        level="fail", text="cannot import what every job needs", fix="python3 -m hpcq.core.environments core",
        profile='python = "{empty}/bin/python"',
    ),
    "no module command": Fault(
        level="warning", text="'cuda/99' cannot be checked here", fix="Check it on a node",
        profile='modules = ["cuda/99"]', variables={"HOME": "home"},
        prepare=lambda folder: write_profile(folder, "unset -f module"),
    ),
    "unknown module": Fault(
        level="fail", text="`module load cuda/99` fails: no cuda/99 here", fix="Correct environments.core.modules.",
        profile='modules = ["cuda/99"]',
        variables={"HOME": "home"},
        prepare=lambda folder: write_profile(folder, "module() { echo no $2 here >&2; return 1; }"),
    ),
    "invalid manifest": Fault(
        level="fail", text="manifest.toml:", fix="", manifest=REHEARSAL.replace("limit = 5", "limit = -5")
    ),
    "model is missing": Fault(
        level="fail", text="Model nowhere is missing", fix="Correct the path", manifest=PACKAGED.replace(
            'id = "HuggingFaceTB/SmolLM2-135M-Instruct"\nsource = "packages"', 'path = "nowhere"'),
    ),
    "not staged": Fault(
        level="warning", text="data set arc_challenge is not staged", fix="Run `hpcq stage",
        manifest=PACKAGED, variables={"HPCQ_CACHE": "new"},
    ),
    "no hub": Fault(
        level="fail", text="acme/none", fix="", manifest=HUB,
        variables={"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HPCQ_HUB_RETRY_S": "1"},
    ),
    "offline": Fault(
        level="fail", text="acme/none", fix="", manifest=HUB, variables={"HF_HUB_OFFLINE": "1"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_with_its_fix(hpcq: Hpcq, name: str) -> None:
    """One finding has the level, the fact and the fix; failures give exit code 3, those of the manifest 2."""
    fault = FAULTS[name]
    fault.prepare(hpcq.folder)
    options: list[str | Path] = []
    if fault.profile is not None:
        (hpcq.folder / "empty" / "bin").mkdir(parents=True)
        (hpcq.folder / "empty" / "bin" / "python").symlink_to("/bin/false")
        text = PROFILE + fault.profile.replace("{empty}", str(hpcq.folder / "empty"))
        options = ["-O", f"cluster.profile={hpcq.write(text, 'profile.toml')}"]
    done = hpcq("doctor", hpcq.write(fault.manifest), "--json", *options, env=fault.variables)
    assert "Traceback" not in done.err
    found = [one for one in done.document["findings"] if one["level"] == fault.level and fault.text in one["text"]]
    assert found, done.out
    assert any(fault.fix in one["fix"] or fault.fix in one["text"] for one in found), found
    assert all(one["fix"] for one in done.document["findings"] if one["level"] == "warning")
    is_invalid = any((one["section"], one["level"]) == ("manifest", "fail") for one in done.document["findings"])
    assert done.code == (2 if is_invalid else 3 if done.document["failures"] else 0)
    assert is_invalid or name != "invalid manifest"


def test_nothing_is_left_or_written(hpcq: Hpcq) -> None:
    """A run that would work: every line is ok, and the folder has no other files than before."""
    manifest = hpcq.write(REHEARSAL)
    done = hpcq("doctor", manifest, env={"PYTHONPATH": ""})
    assert done.code == 0, done.out
    assert [path.name for path in hpcq.folder.iterdir()] == [manifest.name]
    assert done.out.splitlines()[-1].endswith("checks: 0 failed, 0 with a warning.")


def test_a_laptop_needs_no_slurm(hpcq: Hpcq, tmp_path: Path) -> None:
    """Without a manifest and without Slurm, the machine is ready for local runs."""
    done = hpcq("doctor", env={"PATH": str(tmp_path), "PYTHONPATH": ""})
    assert "ok       slurm: this machine has no Slurm: runs use cluster.profile=local." in done.out
    assert done.code == 0, done.out
