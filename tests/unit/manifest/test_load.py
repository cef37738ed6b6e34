"""Manifests that are right, and files that are none."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcq.core.errors import ManifestError
from hpcq.manifest import Manifest, load, resolve

LoadText = Callable[..., Manifest]
CHECKOUT = Path(__file__).resolve().parents[3]


def test_the_example_of_the_contract_loads(load_text: LoadText) -> None:
    """The manifest that the design shows means five schemes of one model on 13 tasks, answered by vLLM."""
    resolved = resolve(
        load_text("""
[run]
name = "llama-3.1-405b"

[cluster]
profile = "clusters/paper.toml"        # GPU classes; or "local", or "auto"

[[models]]
id = "meta-llama/Llama-3.1-405B-Instruct"

[schemes]
use = ["bf16", "fp8", "gptq-w4a16", "awq-w4a16", "smoothquant-w8a8"]

[tasks]
suites = ["openllm-v1", "openllm-v2", "mt-bench"]

[evaluate]
backend = "vllm"                       # falls back to accelerate where vLLM cannot

[report]
compare = ["arxiv-2409.11055v6"]
""")
    )
    assert [scheme.name for _, scheme in resolved.pairs] == [
        "bf16",
        "fp8",
        "gptq-w4a16",
        "awq-w4a16",
        "smoothquant-w8a8",
    ]
    assert len(resolved.tasks) == 13
    assert (resolved.evaluate.backend, resolved.evaluate.environment) == ("vllm", "vllm")
    assert list(resolved.profile.gpu_classes) == ["h100", "a100", "rtx6000ada", "a6000"]


@pytest.mark.parametrize("name", sorted(path.name for path in (CHECKOUT / "manifests").glob("*.toml")))
def test_every_shipped_manifest_resolves(name: str) -> None:
    """The checkout's own manifests are right, whether or not anything is staged."""
    path = CHECKOUT / "manifests" / name
    assert resolve(load(path)).name == load(path).run.name


def test_options_replace_values_and_are_named_in_errors(smallest: str, load_text: LoadText) -> None:
    """An option changes a value, and where that value is wrong the option is the place that the error names."""
    assert load_text(smallest, "evaluate.batch_size=3", "models.0.id=google/gemma-2b").evaluate.batch_size == 3
    with pytest.raises(ManifestError) as refusal:
        load_text(smallest, "evaluate.batch_size=0", "tasks.use.0=arc_chalenge", "schemes.use=['bf16', 'bf16']")
    assert refusal.value.problems[0] == "-O schemes.use=['bf16', 'bf16']: schemes.use: 'bf16' is listed twice."
    assert refusal.value.problems[1].startswith("-O tasks.use.0=arc_chalenge: tasks.use: unknown task 'arc_chalenge'; ")
    assert refusal.value.problems[2] == "-O evaluate.batch_size=0: evaluate.batch_size: must be 1 or more, not 0."


def test_windows_line_ends_and_a_byte_order_mark_are_no_hindrance(smallest: str) -> None:
    """A file saved by a Windows editor loads, and its lines are counted alike."""
    Path("crlf.toml").write_bytes(b"\xef\xbb\xbf" + (smallest + "limit = 0\n").replace("\n", "\r\n").encode())
    with pytest.raises(ManifestError) as refusal:
        load(Path("crlf.toml"))
    assert refusal.value.problems == ("crlf.toml:12: tasks.limit: must be 1 or more, not 0.",)


def _refused(path: Path) -> str:
    with pytest.raises(ManifestError) as refusal:
        load(path)
    assert len(refusal.value.problems) == 1
    return refusal.value.problems[0]


def test_a_missing_file_is_named_with_its_neighbour() -> None:
    """A path that is not there is refused, with the file beside it that was probably meant."""
    Path("quickstart.toml").touch()
    assert _refused(Path("quikstart.toml")) == (
        "quikstart.toml: there is no such file. Did you mean 'quickstart.toml'?"
    )
    assert _refused(Path("nowhere/x.toml")) == "nowhere/x.toml: there is no such file."


def test_a_folder_is_no_manifest() -> None:
    """A folder in the place of a file is refused as such."""
    assert _refused(Path()) == ".: is a folder; name a TOML file."


def test_a_path_through_a_file_is_refused(smallest: str) -> None:
    """A path that leads through a file says what the system said."""
    Path("file").write_text(smallest)
    assert _refused(Path("file/x.toml")) == "file/x.toml: cannot be read (Not a directory)."


def test_text_in_another_encoding_is_refused() -> None:
    """Bytes that are not UTF-8 are refused with their position."""
    Path("latin.toml").write_bytes(b'[run]\nname = "caf\xe9"\n')
    assert _refused(Path("latin.toml")) == "latin.toml: is not UTF-8 text (byte 17); save it as UTF-8."


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[run\n", "bad.toml:1: is not TOML: expected ']' at the end of a table declaration."),
        ('[run]\nname = "x"\nname = "y"\n', "bad.toml:3: a key or table is given twice."),
        ("[tasks]\n[run]\n[tasks]\n", "bad.toml:3: 'tasks' is given twice."),
        ("a = { b = 1 }\n[a.c]\n", "bad.toml:2: 'a.c' is given twice."),
        ('x = { "it\'s" = 1, "it\'s" = 2 }\n', "bad.toml:1: 'it's' is given twice."),
        ("[tasks]\nlimit = " + "9" * 5000 + "\n", "bad.toml:2: holds a number that is too long to be read."),
        ("[run]\nname = x\n", "bad.toml:2: is not TOML: invalid value."),
        ("x = [\n1\n", "bad.toml:3: is not TOML: unclosed array."),
        ("x = " + "[" * 5000, "bad.toml: is nested too deeply to be read."),
    ],
    ids=["table", "twice", "table twice", "table inline", "inline twice", "digits", "bare word", "unclosed", "deep"],
)
def test_broken_toml_is_refused_with_its_line(text: str, problem: str) -> None:
    """What TOML's grammar does not allow is refused at its line, in the parser's words or in plainer ones."""
    Path("bad.toml").write_text(text)
    assert _refused(Path("bad.toml")) == problem


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user who may not read a file")
def test_files_without_permission_are_refused(smallest: str) -> None:
    """To a plain user, files that may not be read and folders that may not be written are named as such."""
    program = """
import os
from pathlib import Path
from hpcq.core.errors import ManifestError
from hpcq.manifest import load
load(Path("fine.toml"))  # as root, so that everything of hpcq is in memory
os.setgid(65534)
os.setuid(65534)
for name in ("secret.toml", "closed.toml"):
    try:
        load(Path(name))
    except ManifestError as error:
        print(error)
"""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "secret.toml").write_text(smallest)
        (folder / "secret.toml").chmod(0o000)
        (folder / "fine.toml").write_text(smallest)
        closed = '[calibration]\ndataset = "closed/text.txt"\n[paths]\nruns = "closed/runs"\n'
        (folder / "closed.toml").write_text(smallest + closed + 'checkpoints = "/tmp"\nlogs = "/tmp"\n')
        (folder / "closed").mkdir(mode=0o700)
        (folder / "closed" / "text.txt").touch()
        told = subprocess.run(
            [sys.executable, "-c", program],
            cwd=folder,
            env=os.environ | {"HPCQ_CACHE": "/nowhere"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        text, runs = (
            "calibration.dataset: 'closed/text.txt' cannot be read",
            "paths.runs: 'closed/runs' cannot be written",
        )
        assert told.splitlines() == [
            "secret.toml: cannot be read (Permission denied).",
            f"closed.toml:13: {text}: no permission for {folder}/closed.",
            f"closed.toml:15: {runs}: no permission for {folder}/closed. Choose another folder.",
        ]
