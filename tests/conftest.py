"""What all tests share: interpreters, offline switches, what each folder needs, and what is said of skipped tests.

Knows where tests lie and what they need on the machine; knows nothing of what any of them proves.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

from hpcq.core import environments

TESTS = Path(__file__).resolve().parent
SLURM_COMMANDS = ("slurmctld", "slurmd", "sbatch", "squeue", "srun", "scontrol", "sinfo", "scancel")
NEEDS_SLURM = "needs Slurm"
NOT_INSTALLED = ("is not on this machine", "is not made yet", "could not import")
IN_CI = os.environ.get("CI", "").lower() == "true"

# Marker of every test in a folder, and the seconds that one may take unless it says otherwise.
FOLDERS = {"slurm": 300, "models": 900, "vllm": 900, "faults": 300}

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}

# No deadline for single examples: the machines that test are shared, and pytest-timeout bounds the whole.
hypothesis.settings.register_profile("hpcq", deadline=None)
hypothesis.settings.load_profile("hpcq")


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment that every test and every process it starts sees, before any library reads it."""
    home = tempfile.mkdtemp(prefix="hpcq-hf-home-")
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    # Debian keeps daemons where a plain user's PATH does not look.
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    # What a test starts finds hpcq in any environment and from any folder.
    python_path = os.pathsep.join(filter(None, [str(TESTS.parent), os.environ.get("PYTHONPATH")]))
    os.environ.update(OFFLINE, HF_HOME=home, PATH=path, PYTHONPATH=python_path)
    # Where the suite was begun by nohup or in a shell's background, it would ignore these, and so would all it starts.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by its folder, and give it that folder's time."""
    for item in items:
        for marker, timeout_s in FOLDERS.items():
            if item.path.is_relative_to(TESTS / marker):
                item.add_marker(marker)
                if item.get_closest_marker("timeout") is None:
                    item.add_marker(pytest.mark.timeout(timeout_s))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Where there is no Slurm, skip what needs it; in continuous integration, fail it."""
    missing = [command for command in SLURM_COMMANDS if shutil.which(command) is None]
    if missing and item.get_closest_marker("slurm"):
        reason = f"{NEEDS_SLURM}: there is no {', '.join(missing)}"
        if IN_CI:
            pytest.fail(f"{reason}, and CI=true allows no skipping", pytrace=False)
        pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In continuous integration a test may not be skipped for want of what our own files install."""
    report = yield
    if report.skipped and IN_CI and any(words in report.longreprtext for words in NOT_INSTALLED):
        report.outcome = "failed"
        report.longrepr = f"CI=true allows no skipping: {report.longreprtext}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say aloud how many tests were skipped for want of Slurm."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if NEEDS_SLURM in report.longreprtext]
    if skipped:
        terminalreporter.section("NOT TESTED: Slurm", red=True, bold=True)
        terminalreporter.line(f"{len(skipped)} tests need Slurm, which is not on this machine, and were skipped.")
        terminalreporter.line("Install it (Debian: apt-get install slurm-wlm munge) and run them again.")


@pytest.fixture(scope="session")
def core_python() -> Path:
    """The interpreter of the environment that plans, submits and reports."""
    return existing_interpreter("core")


@pytest.fixture(scope="session")
def transformers_python() -> Path:
    """The interpreter of the environment that quantizes and evaluates."""
    return existing_interpreter("transformers")


def existing_interpreter(name: str) -> Path:
    """The interpreter of an environment that `make environments` has made."""
    if not environments.exists(name):
        pytest.fail(f"There is no environment {name!r} in the cache: run 'make environments'.", pytrace=False)
    return environments.interpreter(name)
