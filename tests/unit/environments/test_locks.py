"""What is read from locks: names, versions, and the place of an environment."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hpcq.core import environments
from hpcq.core.errors import SetupError


def test_versions_are_sorted_by_normalized_name(modules: Path) -> None:
    """Versions come sorted, under names as an index compares them, extras and remarks left out."""
    versions = environments.locked_versions("reading", ["Tiny_Package", "other-package", "tiny.package"], modules)
    assert versions == (("other-package", "2.0rc1"), ("tiny-package", "1.2.3"))


def test_an_unknown_environment_is_refused_with_those_there_are(modules: Path) -> None:
    """A name without a lock is refused, and the sentence lists the names with one."""
    with pytest.raises(SetupError, match=r"no environment 'vlm'.* making, reading\."):
        environments.locked_versions("vlm", [], modules)


def test_a_path_is_no_environment(modules: Path) -> None:
    """A name that leads out of the folder of locks is refused like any unknown one."""
    with pytest.raises(SetupError, match="no environment"):
        environments.interpreter("../modules/reading", modules)


def test_an_unknown_distribution_is_refused_with_the_one_meant(modules: Path) -> None:
    """A distribution that the lock does not pin is refused, with the nearest that it does."""
    with pytest.raises(SetupError, match=r"reading\.lock\.txt pins no 'tiny-packge': did you mean 'tiny-package'"):
        environments.locked_versions("reading", ["tiny_packge"], modules)


@pytest.mark.parametrize("line", ["numpy", "numpy>=2", "numpy==2; sys_platform == 'linux'", "-r other.txt"])
def test_only_exact_pins_are_allowed(modules: Path, line: str) -> None:
    """A line that is not an exact pin is refused with its file and number."""
    (modules / "loose.lock.txt").write_text(f"# loose\n\n{line}\n")
    with pytest.raises(SetupError, match=rf"loose\.lock\.txt:3: {re.escape(repr(line))}"):
        environments.pins("loose", modules)


def test_comments_and_order_do_not_move_an_environment(modules: Path, cache: Path) -> None:
    """The place depends on what is pinned, not on how the lock is written, and lies in the cache."""
    before = environments.interpreter("reading", modules)
    lock = modules / "reading.lock.txt"
    lock.write_text("other-package==2.0rc1\ntiny-package==1.2.3\n")
    assert environments.interpreter("reading", modules) == before
    assert before.is_relative_to(cache / "environments")
    lock.write_text("other-package==2.0\ntiny-package==1.2.3\n")
    assert environments.interpreter("reading", modules) != before


def test_a_lock_is_parsed_once_until_it_is_written_anew(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for again is not parsed again, is nobody else's to change, and is what the file says by now."""
    lock = modules / "reading.lock.txt"
    environments.pins("reading", modules).clear()
    with monkeypatch.context() as without:
        without.delattr(environments, "_PIN")
        assert environments.pins("reading", modules) == {"tiny-package": "1.2.3", "other-package": "2.0rc1"}
    lock.write_text(lock.read_text().replace("1.2.3", "1.2.4"))
    assert environments.pins("reading", modules)["tiny-package"] == "1.2.4"


def test_every_shipped_lock_is_exact() -> None:
    """The shipped locks are exact pins throughout, without local versions and without hpcq itself."""
    assert set(environments.names()) >= {"core", "transformers", "vllm"}
    for name in environments.names():
        pins = environments.pins(name)
        assert "hpcq" not in pins
        assert not [version for version in pins.values() if "+" in version]


def test_what_core_and_transformers_share_is_the_same() -> None:
    """A distribution in both locks has one version: what one environment pickles or stores, the other reads."""
    core, transformers = environments.pins("core"), environments.pins("transformers")
    assert {"numpy", "h5py", "submitit", "cloudpickle"} <= core.keys() & transformers.keys()
    assert {
        name: (core[name], transformers[name])
        for name in core.keys() & transformers.keys()
        if core[name] != transformers[name]
    } == {}


def test_the_core_lock_holds_all_that_hpcq_requires() -> None:
    """Whatever setup.cfg requires of the core and its developers is pinned in the core's lock."""
    settings = configparser.ConfigParser()
    settings.read(environments.CHECKOUT / "setup.cfg")
    required = settings["options"]["install_requires"] + settings["options.extras_require"]["dev"]
    distributions = re.findall(r"^[\w.-]+", required, flags=re.MULTILINE)
    assert "submitit" in distributions
    environments.locked_versions("core", distributions)


def test_no_model_library_is_in_core() -> None:
    """The environment that plans and reports cannot import a model library, because it holds none."""
    heavy = {"torch", "transformers", "vllm", "lm-eval", "datasets", "llmcompressor", "matplotlib"}
    assert heavy.isdisjoint(environments.pins("core"))


def test_reading_locks_needs_the_standard_library_alone() -> None:
    """The module imports nothing that a bare Python lacks: it runs before anything is installed."""
    code = "import sys, hpcq.core.environments; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, cwd=environments.CHECKOUT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) - sys.stdlib_module_names <= {"hpcq", "__main__"}
