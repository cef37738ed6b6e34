"""Creation of environments with venv and pip, from a lock file with one small package and without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcq.core import environments
from hpcq.core.errors import SetupError
from tests.unit.environments.conftest import make_wheel

CREATE = """
import sys
from pathlib import Path
from hpcq.core import environments
environments.create(sys.argv[1], Path(sys.argv[2]))
"""


@pytest.mark.usefixtures("cache")
def test_concurrent_creations_make_one_environment(modules: Path) -> None:
    """Of two processes one waits; the environment is complete, has its marker and is not created again."""
    half_made = environments.folder("making", modules) / "left" / "behind"
    half_made.mkdir(parents=True)
    assert not environments.exists("making", modules)

    processes = [
        subprocess.Popen([sys.executable, "-c", CREATE, "making", str(modules)], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=300)[1] for process in processes]

    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sorted("Creating" in text for text in outputs) == [False, True]
    assert not half_made.exists()
    python = environments.create("making", modules)
    assert subprocess.check_output([python, "-c", "import tiny_package as t; print(t.answer)"]) == b"42\n"
    assert environments.exists("making", modules)
    marker = python.parents[1] / "hpcq-complete.json"
    assert json.loads(marker.read_text())["pins"] == {"tiny-package": "1.2.3"}
    marker.unlink()
    assert not environments.exists("making", modules)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("lock", "reason"),
    [
        ("tiny-package==9.9.9 \\\n    --hash=sha256:" + 64 * "0" + "\n", "tiny-package==9.9.9"),
        ("tiny-package==1.2.3 \\\n    --hash=sha256:" + 64 * "0" + "\n", "Hash mismatch"),
        ("tiny-package==1.2.3\n", "--require-hashes"),
    ],
)
def test_a_failed_installation_is_reported_and_has_no_marker(
    modules: Path, capfd: pytest.CaptureFixture[str], lock: str, reason: str
) -> None:
    """A version that no index has, another hash and a pin without hash are reported with uv's last lines."""
    (modules / "making.lock.txt").write_text(lock)
    with pytest.raises(
        SetupError, match="'making' could not be created: 'uv pip install' failed with exit code"
    ) as failure:
        environments.create("making", modules)
    assert reason in str(failure.value)
    assert not environments.exists("making", modules)
    assert capfd.readouterr().out == ""


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("builds", "more", "installed"),
    [
        (["2.13.0"], "", ["torch.lock.txt", "cuda.lock.txt"]),
        (["2.13.0", "2.13.0+cpu"], "", ["lock.txt", "cpu.lock.txt"]),
        (["2.13.0", "2.13.0+cu130"], "", ["torch.lock.txt", "cuda.lock.txt"]),
        (["2.13.0"], "nvidia-cublas==13.1.1.3\n", ["torch.lock.txt"]),
    ],
)
def test_the_build_of_torch_is_the_one_that_the_site_prefers(
    modules: Path, wheels: Path, tmp_path: Path, builds: list[str], more: str, installed: list[str]
) -> None:
    """The CPU build where an index has it; else PyPI's, with CUDA's libraries unless the lock itself has them."""
    pins = [make_wheel(wheels, "torch", version) for version in builds]
    lock = modules / "torch.lock.txt"
    lock.write_text(f"# A comment\n{pins[0]}{more}tiny_package==1.2.3\n")
    found = environments.locks_to_install("torch", tmp_path, modules, environments.make_installer())
    assert [path.name for path in found] == installed
    assert ("torch==" in found[0].read_text()) == (found[0] == lock)
    assert "tiny_package==1.2.3" in found[0].read_text()


@pytest.mark.usefixtures("cache")
def test_settings_of_pip_reach_uv_in_its_form(
    modules: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Relative and missing folders of packages and a fraction as timeout work as in pip, with relative `--locks`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_FIND_LINKS", f"{wheels.relative_to(tmp_path)} {tmp_path / 'missing'}")
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "15.5")
    arguments = ["making", "--locks", str(modules.relative_to(tmp_path))]
    assert environments.main(arguments) == 0
    assert environments.exists("making", modules)


@pytest.mark.usefixtures("cache")
def test_a_configuration_that_pip_cannot_read_is_reported(
    modules: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It would otherwise be ignored, and packages would come from another index."""
    (tmp_path / "pip.conf").write_text("[global\nindex-url\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    with pytest.raises(SetupError, match="pip's configuration cannot be read"):
        environments.create("making", modules)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("script", "reason"),
    [("", "cannot be executed"), ("#!/bin/sh\nexit 0\n", "there is no interpreter")],
)
def test_a_uv_that_does_not_work_is_reported(
    modules: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, reason: str
) -> None:
    """A file on the PATH that is not a program, and one that does nothing, make no environment."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "uv").write_text(script)
    (tmp_path / "bin" / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(SetupError, match=reason):
        environments.create("making", modules)
    assert not environments.exists("making", modules)


def test_a_cache_that_is_a_file_is_rejected(modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in place of the cache folder is reported as an error of the file system."""
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HPCQ_CACHE", str(tmp_path / "file"))
    with pytest.raises(SetupError, match="a file, not a folder"):
        environments.create("making", modules)


def test_the_module_prints_only_the_interpreter(core_python: Path) -> None:
    """`python -m hpcq.core.environments core` prints one line, the interpreter, if the environment exists."""
    command = [sys.executable, "-m", "hpcq.core.environments", "core"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{core_python}\n", "")


def test_the_module_rejects_an_unknown_name() -> None:
    """For an unknown environment it exits with code 3 and prints one line to stderr."""
    command = [sys.executable, "-m", "hpcq.core.environments", "cores"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)


def test_make_prints_only_the_interpreter(core_python: Path) -> None:
    """`make -s python` prints the main environment's interpreter and nothing else, from any folder."""
    command = ["make", "-s", "-C", str(environments.CHECKOUT), "python", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout == f"{core_python}\n"


def test_make_rejects_an_unsupported_python() -> None:
    """An interpreter older than Python 3.11 is rejected with a message that has its path and the fix."""
    command = ["make", "-s", "-C", str(environments.CHECKOUT), "python", "PYTHON=/bin/false"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "/bin/false is not Python 3.11 or later: install it and run make PYTHON=" in done.stderr


def test_the_core_environment_has_the_console_script(core_python: Path) -> None:
    """The main environment has the `hpcq` command of this checkout."""
    assert (core_python.parent / "hpcq").is_file()
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [core_python, "-c", "import hpcq; print(hpcq.__file__)"]
    where = subprocess.check_output(command, cwd="/", env=bare, text=True)
    assert Path(where.strip()).parents[1] == environments.CHECKOUT
