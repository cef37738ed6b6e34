"""Lock files: names, versions, and the folder of an environment."""

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
    """Versions are sorted by normalized name, without extras and comments."""
    versions = environments.locked_versions("reading", ["Tiny_Package", "other-package", "tiny.package"], modules)
    assert versions == (("other-package", "2.0rc1"), ("tiny-package", "1.2.3"))


def test_an_unknown_environment_is_rejected_with_the_known_names(modules: Path) -> None:
    """A name without a lock file is rejected, and the message lists the names that have one."""
    with pytest.raises(SetupError, match=r"no environment 'vlm'.* making, reading\."):
        environments.locked_versions("vlm", [], modules)


def test_a_path_is_not_an_environment(modules: Path) -> None:
    """A name that refers to a file outside the folder of lock files is rejected like any unknown name."""
    with pytest.raises(SetupError, match="no environment"):
        environments.interpreter("../modules/reading", modules)


def test_an_unknown_distribution_is_rejected_with_the_nearest(modules: Path) -> None:
    """A distribution that is not pinned is rejected, and the message has the nearest pinned name."""
    with pytest.raises(SetupError, match=r"reading\.lock\.txt does not pin 'tiny-packge': did you mean 'tiny-package'"):
        environments.locked_versions("reading", ["tiny_packge"], modules)


@pytest.mark.parametrize("line", ["numpy", "numpy>=2", "numpy==2; sys_platform == 'linux'", "-r other.txt"])
def test_only_exact_pins_are_allowed(modules: Path, line: str) -> None:
    """A line that is not an exact pin is rejected with its file and number."""
    (modules / "loose.lock.txt").write_text(f"# loose\n\n{line}\n")
    with pytest.raises(SetupError, match=rf"loose\.lock\.txt:3: {re.escape(repr(line))}"):
        environments.pins("loose", modules)


def test_comments_and_order_do_not_change_the_folder(modules: Path, cache: Path) -> None:
    """The folder is in the cache and depends on the pins, not on the text of the lock file."""
    before = environments.interpreter("reading", modules)
    lock = modules / "reading.lock.txt"
    lock.write_text("other-package==2.0rc1\ntiny-package==1.2.3\n")
    assert environments.interpreter("reading", modules) == before
    assert before.is_relative_to(cache / "environments")
    lock.write_text("other-package==2.0\ntiny-package==1.2.3\n")
    assert environments.interpreter("reading", modules) != before


def test_a_lock_file_is_parsed_once_until_it_changes(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is cached, callers get a copy, and a changed file is parsed again."""
    lock = modules / "reading.lock.txt"
    environments.pins("reading", modules).clear()
    with monkeypatch.context() as without:
        without.delattr(environments, "_PIN")
        assert environments.pins("reading", modules) == {"tiny-package": "1.2.3", "other-package": "2.0rc1"}
    lock.write_text(lock.read_text().replace("1.2.3", "1.2.4"))
    assert environments.pins("reading", modules)["tiny-package"] == "1.2.4"


def test_every_shipped_lock_file_is_exact() -> None:
    """The shipped lock files have only exact pins, without local versions and without hpcq itself."""
    assert set(environments.names()) >= {"core", "transformers", "vllm"}
    for name in environments.names():
        pins = environments.pins(name)
        assert "hpcq" not in pins
        assert not [version for version in pins.values() if "+" in version]


def test_core_and_transformers_have_the_same_versions() -> None:
    """A distribution in both lock files has one version: each environment reads the other's pickles and files."""
    core, transformers = environments.pins("core"), environments.pins("transformers")
    assert {"numpy", "h5py", "submitit", "cloudpickle"} <= core.keys() & transformers.keys()
    assert {
        name: (core[name], transformers[name])
        for name in core.keys() & transformers.keys()
        if core[name] != transformers[name]
    } == {}


def test_the_core_lock_file_pins_all_requirements_of_hpcq() -> None:
    """All requirements in setup.cfg, for users and developers, are pinned in the lock file of core."""
    settings = configparser.ConfigParser()
    settings.read(environments.CHECKOUT / "setup.cfg")
    required = settings["options"]["install_requires"] + "".join(
        settings["options.extras_require"][name] for name in ("dev", "figures")
    )
    distributions = re.findall(r"^[\w.-]+", required, flags=re.MULTILINE)
    assert "submitit" in distributions
    environments.locked_versions("core", distributions)


def test_no_model_library_is_in_core() -> None:
    """The environment that plans and reports contains no model library."""
    heavy = {"torch", "transformers", "vllm", "lm-eval", "datasets", "llmcompressor", "matplotlib"}
    assert heavy.isdisjoint(environments.pins("core"))


def test_reading_lock_files_needs_only_the_standard_library() -> None:
    """The module imports only the standard library: it runs before anything is installed."""
    code = "import sys, hpcq.core.environments; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) - sys.stdlib_module_names <= {"hpcq", "__main__"}
