"""How environments are made: really, with venv and pip, from a lock of one tiny package and without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcq.core import environments
from hpcq.core.errors import SetupError

CREATE = "import sys, pathlib; from hpcq.core import environments; environments.create(sys.argv[1], pathlib.Path(sys.argv[2]))"


@pytest.mark.usefixtures("cache")
def test_two_makers_at_once_make_one_environment(modules: Path) -> None:
    """Of two processes that make the same environment one waits, and it is whole, marked and left alone afterwards."""
    half_made = environments.folder("making", modules) / "left" / "behind"
    half_made.mkdir(parents=True)
    assert not environments.exists("making", modules)

    makers = [
        subprocess.Popen([sys.executable, "-c", CREATE, "making", str(modules)], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [maker.communicate(timeout=60)[1] for maker in makers]

    assert [maker.returncode for maker in makers] == [0, 0], said
    assert sorted("Making" in text for text in said) == [False, True]
    assert not half_made.exists()
    python = environments.create("making", modules)
    assert subprocess.check_output([python, "-c", "import tiny_package as t; print(t.answer)"]) == b"42\n"
    assert environments.exists("making", modules)
    marker = python.parents[1] / "hpcq-complete.json"
    assert json.loads(marker.read_text())["pins"] == {"tiny-package": "1.2.3"}
    marker.unlink()
    assert not environments.exists("making", modules)


@pytest.mark.usefixtures("cache")
def test_what_pip_cannot_install_is_said_and_left_unmarked(modules: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A lock that names what no index has gives one sentence with pip's last lines, and no environment."""
    (modules / "making.lock.txt").write_text("tiny-package==9.9.9\n")
    with pytest.raises(
        SetupError, match="'making' could not be made: '-m pip install' ended with exit code 1"
    ) as failure:
        environments.create("making", modules)
    assert "No matching distribution found for tiny-package==9.9.9" in str(failure.value)
    assert not environments.exists("making", modules)
    assert capfd.readouterr().out == ""


def test_a_cache_that_is_a_file_is_refused(modules: Path, cache: Path) -> None:
    """A cache folder that cannot be a folder gives the storage's own sentence."""
    cache.write_text("in the way")
    with pytest.raises(SetupError, match="a file, not a folder"):
        environments.create("making", modules)


def test_the_door_prints_the_interpreter_alone(core_python: Path) -> None:
    """`python -m hpcq.core.environments core` prints one line, the interpreter, and nothing else where it exists."""
    command = [sys.executable, "-m", "hpcq.core.environments", "core"]
    done = subprocess.run(command, cwd=environments.CHECKOUT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{core_python}\n", "")


def test_the_door_refuses_an_unknown_name() -> None:
    """An unknown environment ends with exit code 3 and one line on standard error."""
    command = [sys.executable, "-m", "hpcq.core.environments", "cores"]
    done = subprocess.run(command, cwd=environments.CHECKOUT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)


def test_make_prints_the_interpreter_alone(core_python: Path) -> None:
    """`make -s python` prints the main environment's interpreter and nothing else, from any folder."""
    command = ["make", "-s", "-C", str(environments.CHECKOUT), "python", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout == f"{core_python}\n"


def test_make_refuses_what_is_no_python_of_ours() -> None:
    """An interpreter that is not Python 3.11 or later is refused with a sentence that names it and the cure."""
    command = ["make", "-s", "-C", str(environments.CHECKOUT), "python", "PYTHON=/bin/false"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "/bin/false is no Python 3.11 or later: install one and say make PYTHON=" in done.stderr


def test_the_core_environment_has_the_console_script(core_python: Path) -> None:
    """The main environment holds the `hpcq` command, which is this checkout's."""
    assert (core_python.parent / "hpcq").is_file()
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [core_python, "-c", "import hpcq; print(hpcq.__file__)"]
    where = subprocess.check_output(command, cwd="/", env=bare, text=True)
    assert Path(where.strip()).parents[1] == environments.CHECKOUT
