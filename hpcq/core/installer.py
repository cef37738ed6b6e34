"""Creation of a Python environment with uv: exact versions with hashes, from the package indexes that pip uses.

Uses only the standard library, because it runs before any package is installed. uv (0.13) ignores pip's configuration,
but sites configure pip. So pip's index, find-links, certificate and proxy settings are passed to uv.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import math
import os
import re
import shutil
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from hpcq.core.errors import SetupError

Report = Callable[[str], None]
"""Receives one line of progress."""

_SETTING = re.compile(r"(?P<section>[^.=]+|:env:)\.(?P<key>[\w-]+)=(?P<value>.*)")
_SECTIONS = ("global", "install", ":env:")
"""Sections of `pip config list`, in order of increasing precedence."""
_UV_INDEX_VARIABLES = (
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
    "UV_NO_INDEX",
)
_FOREIGN_VARIABLES = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "PIP_USER", "PIP_TARGET", "PIP_PREFIX"}
_PROGRESS = ("Downloading", "Downloaded", "Building", "Built", "Prepared", "Installed", "Collecting", "Bytecode")
_TAIL_LINES = 15
_MIN_FREE_BYTES = 64 * 2**20


class Installer:
    """Creates virtual environments and installs locked packages into them, with uv.

    Args:
        python: base interpreter of the environments.
        cache: folder for downloads (`uv/`) and for uv itself (`tools/`).
        uv_lock: lock file with uv's version and hashes, used if uv is not on the PATH.
        report: receives lines of progress.
    """

    def __init__(self, *, python: str, cache: Path, uv_lock: Path, report: Report) -> None:
        self._python = python
        self._cache = cache
        self._uv_lock = uv_lock
        self._report = report
        self._uv = self._find_uv()
        self._settings = _pip_settings(python)
        self._variables = self._make_variables()

    def make_venv(self, target: Path) -> None:
        """Create an empty virtual environment at `target`.

        Raises:
            SetupError: uv failed.
        """
        self._run([self._uv, "venv", "--python", self._python, str(target)])

    def install(self, target: Path, locks: Sequence[Path]) -> None:
        """Install the pinned packages of `locks`, verify their hashes, and compile bytecode.

        Raises:
            SetupError: uv failed: network, full disk, missing version or wrong hash.
        """
        files = [word for lock in locks for word in ("--requirements", str(lock))]
        verified = ["--no-deps", "--require-hashes", "--compile-bytecode"]
        self._run([*self._pip_install(target), *verified, *self._index_options(), *files])

    def install_editable(self, target: Path, project: Path) -> None:
        """Install `project` in editable mode, without its requirements and without build isolation.

        Raises:
            SetupError: uv failed.
        """
        built_here = ["--no-deps", "--no-build-isolation", "--offline"]
        self._run([*self._pip_install(target), *built_here, "--editable", str(project)])

    def preferred_version(self, requirement: str) -> str | None:
        """Return the version that the site's indexes prefer, local part included; None if there is none or uv fails."""
        command = [self._uv, "pip", "compile", "--quiet", "--no-deps", "--no-header", "--no-annotate"]
        command += ["--python", self._python, *self._index_options(), "-"]
        with _execution_errors(self._uv):
            done = subprocess.run(
                command,
                input=requirement,
                capture_output=True,
                text=True,
                check=False,
                env=self._variables,
                cwd=self._cache,
            )
        return done.stdout.strip().rpartition("==")[2] or None

    def _pip_install(self, target: Path) -> list[str]:
        return [self._uv, "pip", "install", "--python", str(target / "bin" / "python")]

    def _find_uv(self) -> str:
        """Return the path of uv: on the PATH, or else the locked version, which pip installs once into the cache."""
        found = shutil.which("uv")
        if found:
            return found
        version = self._uv_lock.read_text(encoding="utf-8").partition("uv==")[2].split()[0]
        folder = self._cache / "tools" / f"uv-{version}"
        uv = folder / "bin" / "uv"
        if not uv.is_file():
            self._report(f"Fetching uv {version} into {folder}")
            partial = folder.with_name(f".{folder.name}.{os.getpid()}")
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(partial)
            self._variables = _clean_environment(os.environ)
            self._run([self._python, "-m", "venv", str(partial)])
            pip = [str(partial / "bin" / "python"), "-m", "pip", "install"]
            self._run([*pip, "--no-deps", "--require-hashes", "--requirement", str(self._uv_lock)])
            with contextlib.suppress(OSError):  # another process has already created it
                partial.rename(folder)
        return str(uv)

    def _make_variables(self) -> dict[str, str]:
        variables = _clean_environment(os.environ)
        for variable, key in (
            ("SSL_CERT_FILE", "cert"),
            ("HTTPS_PROXY", "proxy"),
            ("UV_HTTP_TIMEOUT", "default-timeout"),
        ):
            value = self._settings.get(key) or (self._settings.get("timeout") if key == "default-timeout" else None)
            if value:
                is_timeout = variable == "UV_HTTP_TIMEOUT"  # pip accepts fractions of a second, uv does not
                variables.setdefault(variable, str(math.ceil(float(value))) if is_timeout else value)
        # On the file system of the environments, so that uv links files instead of copying them.
        variables.setdefault("UV_CACHE_DIR", str(self._cache / "uv"))
        return {**variables, "UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"}

    def _index_options(self) -> list[str]:
        """Return pip's indexes as options of uv; no options if uv is configured by its own variables."""
        if any(os.environ.get(name) for name in _UV_INDEX_VARIABLES):
            return []
        options = ["--index-strategy", "unsafe-best-match"]  # as pip does; every file is checked against its hash
        named = (("index-url", "--default-index"), ("extra-index-url", "--index"), ("find-links", "--find-links"))
        for key, option in (*named, ("trusted-host", "--allow-insecure-host")):
            values = map(_absolute, self._settings.get(key, "").split())
            options += [word for value in values if value for word in (option, value)]
        if self._settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
            options.append("--no-index")
        return options

    def _run(self, command: list[str]) -> None:
        """Run one step, report the lines that show progress, and keep the last ones for the error message."""
        tail: deque[str] = deque(maxlen=_TAIL_LINES)
        with (
            _execution_errors(command[0]),
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=self._variables,
                # Outside the checkout: a folder of the working directory must not be taken for a package.
                cwd=self._cache,
            ) as process,
        ):
            try:
                for line in process.stdout or ():
                    tail.append(line.rstrip())
                    if line.strip().startswith(_PROGRESS):
                        self._report(f"  {line.strip()[:100]}")
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            output = "\n".join(f"  {line}" for line in tail)
            step = " ".join([Path(command[0]).name, *itertools.takewhile(lambda word: word[:2] != "--", command[1:4])])
            raise SetupError(f"'{step}' failed with exit code {process.returncode}. {self._hint(output)}\n{output}")

    def _hint(self, output: str) -> str:
        """Return how to fix a failed step, from its output."""
        if "ensurepip is not" in output:
            return (
                f"{self._python} has no ensurepip: on Debian install python3-venv, on a cluster load another Python."
                " Then run the hpcq command again."
            )
        # ensurepip does not report why it failed, so the free space is checked too.
        if "No space left on device" in output or shutil.disk_usage(self._cache).free < _MIN_FREE_BYTES:
            return "The disk is full: free some space, or set HPCQ_CACHE to a folder on another disk."
        return (
            "The cause is in the output below (network, package index, version). Fix it and run the hpcq command again."
        )


def _absolute(value: str) -> str | None:
    """Return an index, host or folder for uv, which runs in another folder; None for a folder that does not exist."""
    path = Path(value).expanduser()
    if "://" in value or not (value.startswith("~") or path.is_absolute() or path.exists()):
        return value
    return str(path.absolute()) if path.exists() else None  # pip, too, ignores a missing folder


def _clean_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return `variables`, pip's settings included, without those that refer to another Python's packages."""
    kept = {key: value for key, value in variables.items() if key not in _FOREIGN_VARIABLES}
    return {**kept, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PYTHONUNBUFFERED": "1"}


def _pip_settings(python: str) -> dict[str, str]:
    """Return pip's settings by key, from its files and its variables; empty if this Python has no pip."""
    command = [python, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_clean_environment(os.environ))
    if done.returncode and "No module named pip" not in done.stderr:  # of `python -m`
        reason = (done.stderr.strip() or "no output").splitlines()[-1]
        raise SetupError(f"pip's configuration cannot be read: {reason}. Correct it, or unset PIP_CONFIG_FILE.")
    return {} if done.returncode else dict(_parse_settings(done.stdout))


@contextlib.contextmanager
def _execution_errors(program: str) -> Iterator[None]:
    """Turn the failure to start a program into a SetupError."""
    try:
        yield
    except OSError as error:
        raise SetupError(f"{program} cannot be executed ({error.strerror}). Remove it, or replace it.") from error


def _parse_settings(listing: str) -> Iterator[tuple[str, str]]:
    """Yield keys and values of `pip config list`, by section in order of increasing precedence."""
    found = [match for line in listing.splitlines() if (match := _SETTING.fullmatch(line.strip()))]
    for section in _SECTIONS:
        for match in found:
            if match["section"] == section:
                yield match["key"], str(ast.literal_eval(match["value"]))
