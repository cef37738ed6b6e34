"""Loading of valid manifests, and of files that are not manifests."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcq.core.errors import ManifestError
from hpcq.manifest import Context, load, resolve
from hpcq.run.record import manifest_layout

LoadText = Callable[..., Context]
CHECKOUT = Path(__file__).resolve().parents[3]


def test_the_reference_example_loads(load_text: LoadText) -> None:
    """One model with five schemes on 13 tasks, evaluated by vLLM."""
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
backend = "vllm"                       # accelerate, where vLLM is not supported

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
    """The manifests in the checkout are valid, even if nothing is staged."""
    path = CHECKOUT / "manifests" / name
    assert resolve(load(path)).name == load(path).manifest.run.name


def test_overrides_replace_values_and_are_named_in_errors(smallest: str, load_text: LoadText) -> None:
    """An override changes a value; an error in that value names the override as its location."""
    assert load_text(smallest, "evaluate.batch_size=3", "models.0.id=google/gemma-2b").manifest.evaluate.batch_size == 3
    with pytest.raises(ManifestError) as raised:
        load_text(smallest, "evaluate.batch_size=0", "tasks.use.0=arc_chalenge", "schemes.use=['bf16', 'bf16']")
    assert raised.value.problems[0] == "-O schemes.use=['bf16', 'bf16']: schemes.use: 'bf16' is listed twice."
    assert raised.value.problems[2].startswith("-O tasks.use.0=arc_chalenge: tasks.use: unknown task 'arc_chalenge': ")
    assert raised.value.problems[1] == "-O evaluate.batch_size=0: evaluate.batch_size: must be 1 or more, not 0."


def test_windows_line_endings_and_a_byte_order_mark_are_accepted(smallest: str) -> None:
    """A file saved by a Windows editor loads, with the same line numbers."""
    Path("crlf.toml").write_bytes(b"\xef\xbb\xbf" + (smallest + "limit = 0\n").replace("\n", "\r\n").encode())
    with pytest.raises(ManifestError) as raised:
        load(Path("crlf.toml"))
    assert raised.value.problems == ("crlf.toml:12: tasks.limit: must be 1 or more, not 0.",)


def _problem(path: Path) -> str:
    with pytest.raises(ManifestError) as raised:
        load(path)
    assert len(raised.value.problems) == 1
    return raised.value.problems[0]


def test_a_missing_file_is_reported_with_a_similar_name() -> None:
    """The message suggests a similar file in the same folder."""
    Path("quickstart.toml").touch()
    assert _problem(Path("quikstart.toml")) == ("quikstart.toml: file not found. Did you mean 'quickstart.toml'?")
    assert _problem(Path("nowhere/x.toml")) == "nowhere/x.toml: file not found."


def test_a_folder_is_rejected() -> None:
    """A manifest must be a file."""
    assert _problem(Path()) == ".: is a folder; give a TOML file."


def test_a_path_below_a_file_is_rejected(smallest: str) -> None:
    """The message contains the operating system's reason."""
    Path("file").write_text(smallest)
    assert _problem(Path("file/x.toml")) == "file/x.toml: cannot be read (Not a directory)."


def test_text_in_another_encoding_is_rejected() -> None:
    """The message contains the position of the first byte that is not UTF-8."""
    Path("latin.toml").write_bytes(b'[run]\nname = "caf\xe9"\n')
    assert _problem(Path("latin.toml")) == "latin.toml: is not UTF-8 text (byte 17); save it as UTF-8."


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[run\n", "bad.toml:1: is not valid TOML: expected ']' at the end of a table declaration."),
        ('[run]\nname = "x"\nname = "y"\n', "bad.toml:3: a key or table is defined twice."),
        ("[tasks]\n[run]\n[tasks]\n", "bad.toml:3: 'tasks' is defined twice."),
        ("a = { b = 1 }\n[a.c]\n", "bad.toml:2: 'a.c' is defined twice."),
        ('x = { "it\'s" = 1, "it\'s" = 2 }\n', "bad.toml:1: 'it's' is defined twice."),
        ("[tasks]\nlimit = " + "9" * 5000 + "\n", "bad.toml:2: contains a number with too many digits."),
        ("[run]\nname = x\n", "bad.toml:2: is not valid TOML: invalid value."),
        ("x = [\n1\n", "bad.toml:3: is not valid TOML: unclosed array."),
        ("x = " + "[" * 5000, "bad.toml: is nested too deeply."),
    ],
    ids=["table", "twice", "table twice", "table inline", "inline twice", "digits", "bare word", "unclosed", "deep"],
)
def test_invalid_toml_is_rejected_with_its_line(text: str, problem: str) -> None:
    """The message contains the line, and the parser's message or a simpler one."""
    Path("bad.toml").write_text(text)
    assert _problem(Path("bad.toml")) == problem


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user who may not read a file")
def test_files_without_permission_are_rejected(smallest: str) -> None:
    """A normal user gets a message for files without read permission and folders without write permission."""
    program = """
import os
from pathlib import Path
from hpcq.core.errors import ManifestError
from hpcq.manifest import load
load(Path("fine.toml"))  # as root, so that all of hpcq is imported before
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
        output = subprocess.run(
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
        assert output.splitlines() == [
            "secret.toml: cannot be read (Permission denied).",
            f"closed.toml:13: {text}: no permission for {folder}/closed.",
            f"closed.toml:15: {runs}: no permission for {folder}/closed. Choose another folder.",
        ]


def test_the_folders_of_a_run_need_none_of_its_inputs(load_text: LoadText, smallest: str) -> None:
    """The folder of a run is known although its items, checkpoints and calibration text were moved away."""
    text = smallest.replace('use = ["arc_challenge"]', 'use = ["arc_challenge"]\ndata = "items"')
    text += '[calibration]\ndataset = "text.jsonl"\n'
    text = text.replace("[[models]]", '[[models]]\ncheckpoints = ["./quantized"]')
    with pytest.raises(ManifestError, match=r"'text\.jsonl' does not exist"):
        load_text(text)

    assert manifest_layout(Path("mine.toml"), ["paths.runs=elsewhere"]).folder == Path("elsewhere/smallest").absolute()
    with pytest.raises(ManifestError, match=r"^-O paths\.run=elsewhere: paths\.run: unknown key"):
        manifest_layout(Path("mine.toml"), ["paths.run=elsewhere"])
