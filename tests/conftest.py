"""Common fixtures and hooks: interpreters, offline mode, markers and time limits per folder, skipped tests."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from hpcq.core import environments
from hpcq.core.paths import cache_folder
from tests import isolation

TESTS = Path(__file__).resolve().parent
SLURM_COMMANDS = ("slurmctld", "slurmd", "sbatch", "squeue", "srun", "scontrol", "sinfo", "scancel")
NEEDS_SLURM = "needs Slurm"
NEEDING_SLURM = ("slurm", "hub")
NOT_INSTALLED = ("is not on this machine", "is not made yet", "could not import")
IN_CI = os.environ.get("CI", "").lower() == "true"

# Folder and marker of tests, with their default time limit in seconds. A limit only ends a test that hangs.
FOLDERS = {"slurm": 1800, "hub": 1800, "models": 1800, "vllm": 1800, "faults": 1800}

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}

# No deadline per example: test machines are shared, and pytest-timeout limits the whole test. The same examples in each
# run: a change, not chance, decides whether tests pass. `--hypothesis-profile=random` draws others.
hypothesis.settings.register_profile("hpcq", deadline=None, derandomize=True)
hypothesis.settings.register_profile("random", deadline=None)
hypothesis.settings.load_profile("hpcq")


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment of all tests and their subprocesses, before any library reads it."""
    folder = Path(tempfile.mkdtemp(prefix="hpcq-tests-"))
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    isolation.link_cache(folder / "cache", cache_folder())
    # Debian installs daemons in folders that are not in a user's PATH.
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    # Subprocesses import hpcq in any environment and from any folder.
    python_path = os.pathsep.join(filter(None, [str(TESTS.parent), os.environ.get("PYTHONPATH")]))
    folders = {"HF_HOME": str(folder / "hf-home"), "HPCQ_CACHE": str(folder / "cache")}
    os.environ.update(OFFLINE, **folders, PATH=path, PYTHONPATH=python_path)
    # With nohup or in the background of a shell, the suite and its subprocesses would inherit these signals as ignored.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Add the marker and the time limit of its folder to each test."""
    for item in items:
        for marker, timeout_s in FOLDERS.items():
            if item.path.is_relative_to(TESTS / marker):
                item.add_marker(marker)
                if item.get_closest_marker("timeout") is None:
                    item.add_marker(pytest.mark.timeout(timeout_s))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that need Slurm if it is not installed; in continuous integration, fail them."""
    missing = [command for command in SLURM_COMMANDS if shutil.which(command) is None]
    if missing and any(map(item.get_closest_marker, NEEDING_SLURM)):
        reason = f"{NEEDS_SLURM}: missing commands: {', '.join(missing)}"
        if IN_CI:
            pytest.fail(f"{reason}; tests must not be skipped with CI=true", pytrace=False)
        pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In continuous integration, fail tests that are skipped because of a package that our locks install."""
    report = yield
    if report.skipped and IN_CI and any(phrase in report.longreprtext for phrase in NOT_INSTALLED):
        report.outcome = "failed"
        report.longrepr = f"Tests must not be skipped with CI=true: {report.longreprtext}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many tests were skipped because Slurm is missing."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if NEEDS_SLURM in report.longreprtext]
    if skipped:
        terminalreporter.section("NOT TESTED: Slurm", red=True, bold=True)
        terminalreporter.line(f"{len(skipped)} tests were skipped because Slurm is not installed.")
        terminalreporter.line("Install it (Debian: apt-get install slurm-wlm munge) and run them again.")


@pytest.fixture(scope="session", autouse=True)
def _working_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The empty folder that all tests run in, and their subprocesses unless they get another one."""
    before, folder = Path.cwd(), tmp_path_factory.mktemp("working-directory")
    os.chdir(folder)
    with isolation.guarded_checkout():
        yield folder
    os.chdir(before)


@pytest.fixture(scope="module", autouse=True)
def _unclosed_files() -> Iterator[None]:
    """Fail a file of tests that leaves files or pipes open; the garbage collector would warn in another file's test."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def _isolation(_working_directory: Path) -> Iterator[None]:
    """Fail a test that has used the checkout's run folders, or left something in the working directory or the cache."""
    cache = cache_folder()
    before = {*_working_directory.iterdir(), *isolation.cache_entries(cache)}
    yield
    after = {*_working_directory.iterdir(), *isolation.cache_entries(cache)}
    found = isolation.take_violations() + [f"created {path}" for path in sorted(after - before)]
    if found:
        pytest.fail(f"The test is not isolated from the user's folders; use tmp_path: {found}", pytrace=False)


@pytest.fixture(scope="session")
def core_python() -> Path:
    """Interpreter of the environment that plans, submits and reports."""
    return existing_interpreter("core")


@pytest.fixture(scope="session")
def transformers_python() -> Path:
    """Interpreter of the environment that quantizes and evaluates."""
    return existing_interpreter("transformers")


def existing_interpreter(name: str) -> Path:
    """Return the interpreter of an environment created by `make environments`; fail the test if it does not exist."""
    if not environments.exists(name):
        pytest.fail(f"Environment {name!r} does not exist: run 'make environments'.", pytrace=False)
    return environments.interpreter(name)
