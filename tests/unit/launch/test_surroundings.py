"""The shell in which a unit's interpreter starts, made by the real scripts under sbatch/."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpcq.core.errors import UserInputError
from hpcq.launch.array_spec import Environment
from hpcq.launch.job_script import PACKAGE, environment_text, package_path, script, write_environment

MODULE_COMMAND = Path("/usr/share/modules/init/bash")


def shell(
    tmp_path: Path, environment: Environment, *command: str, **inherited: str
) -> subprocess.CompletedProcess[str]:
    """Run `command` as the local launcher would; the shell inherits little else than `inherited`."""
    path = tmp_path / "environment.sh"
    write_environment(path, environment, threads=3, package_path=package_path(tmp_path / "run"))
    return subprocess.run(
        ["bash", str(script("enter.sh")), str(path), *command],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", **inherited},
        cwd=tmp_path,
        check=False,
        timeout=30,
    )


def test_values_arrive_as_they_were_written(tmp_path: Path) -> None:
    """Quotes, dollars, backquotes and line breaks in a variable's value mean nothing to the shell."""
    value = f"it's $(touch {tmp_path}/trap) `touch {tmp_path}/trap`\n; touch {tmp_path}/trap \"\\"
    environment = Environment(name="e", python="python", variables=(("ODD", value),))
    done = shell(tmp_path, environment, "printenv", "ODD")
    assert done.stdout == value + "\n"
    assert not (tmp_path / "trap").exists()


def test_a_job_finds_hpcq_and_nothing_else_of_the_checkout(tmp_path: Path) -> None:
    """A job's interpreter finds the package hpcq, and nothing beside it in the checkout or the working directory."""
    (tmp_path / "awq").mkdir()
    probe = (
        "import importlib.util as u, hpcq, sys;"
        "print(hpcq.__file__, [n for n in ('tests', 'awq', 'benchmarks') if u.find_spec(n)])"
    )
    done = shell(
        tmp_path, Environment(name="e", python="python"), sys.executable, "-c", probe, PYTHONPATH=str(tmp_path)
    )
    assert done.stdout.strip() == f"{tmp_path}/run/package/hpcq/__init__.py []"


def test_threads_files_and_python_settings_are_the_jobs_own(tmp_path: Path) -> None:
    """Threads are the unit's cores, new files are private, and the submitting shell's Python settings are gone."""
    probe = 'echo "$OMP_NUM_THREADS $MKL_NUM_THREADS $(umask) ${PYTHONHOME-unset} $PYTHONNOUSERSITE"'
    done = shell(tmp_path, Environment(name="e", python="python"), "bash", "-c", probe, PYTHONHOME="/odd")
    assert done.stdout.strip() == "3 3 0077 unset 1"


def test_the_profiles_variables_replace_ours(tmp_path: Path) -> None:
    """A profile may say another number of threads than the unit has cores."""
    environment = Environment(name="e", python="python", variables=(("HPCQ_THREADS", "1"),))
    assert shell(tmp_path, environment, "printenv", "OMP_NUM_THREADS").stdout.strip() == "1"


def test_a_set_up_line_that_fails_ends_the_job_before_the_command(tmp_path: Path) -> None:
    """The command runs in the wanted surroundings or not at all."""
    environment = Environment(name="e", python="python", setup=("echo $never_set before", "false"))
    done = shell(tmp_path, environment, "echo", "command")
    assert done.returncode != 0
    assert done.stdout == "before\n"


@pytest.mark.parametrize("name", ["gcc; touch trap", "$(id)", "a b", "", "-f"])
def test_a_module_name_that_is_none_is_refused(name: str) -> None:
    """Names of modules are the only values that a script uses unquoted, and so are checked."""
    with pytest.raises(UserInputError, match="is no name of a module"):
        environment_text(Environment(name="e", python="p", modules=(name,)), threads=1, package_path=Path("/p"))


@pytest.mark.parametrize("name", ["1A", "A B", "A=B", ""])
def test_a_variable_name_that_is_none_is_refused(name: str) -> None:
    """A variable's name cannot carry a command either."""
    with pytest.raises(UserInputError, match="is no name of a variable"):
        environment_text(
            Environment(name="e", python="p", variables=((name, "v"),)), threads=1, package_path=Path("/p")
        )


@pytest.mark.skipif(not MODULE_COMMAND.exists(), reason="environment-modules is not on this machine")
def test_modules_are_loaded_where_the_shell_has_no_module_command_yet(tmp_path: Path) -> None:
    """The prologue finds the module command, and a module may add to the path that the prologue set."""
    (tmp_path / "modulefiles" / "cuda").mkdir(parents=True)
    (tmp_path / "modulefiles" / "cuda" / "12.4").write_text("#%Module\nsetenv CUDA_ROOT /opt/cuda-12.4\n")
    (tmp_path / "modulefiles" / "tools").write_text("#%Module\nappend-path PYTHONPATH /opt/tools\n")
    variables = (("MODULEPATH", str(tmp_path / "modulefiles")),)
    environment = Environment(name="e", python="python", modules=("cuda/12.4", "tools"), variables=variables)
    done = shell(tmp_path, environment, "bash", "-c", 'echo "$CUDA_ROOT $PYTHONPATH"')
    assert done.stdout.strip() == f"/opt/cuda-12.4 {tmp_path}/run/package:/opt/tools"


@pytest.mark.skipif(not MODULE_COMMAND.exists(), reason="environment-modules is not on this machine")
def test_a_module_that_is_missing_ends_the_job_with_a_sentence(tmp_path: Path) -> None:
    """A module that cannot be loaded is named on standard error, and the command does not run."""
    done = shell(tmp_path, Environment(name="e", python="python", modules=("no-such/1",)), "echo", "command")
    assert done.returncode != 0
    assert done.stdout == ""
    assert "'module load no-such/1' failed" in done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not on this machine")
def test_the_scripts_are_clean() -> None:
    """shellcheck has nothing to say about sbatch/."""
    scripts = sorted(script("enter.sh").parent.glob("*.sh"))
    assert subprocess.run(["shellcheck", *scripts], check=False, timeout=30).returncode == 0


def test_the_link_to_the_package_is_renewed(tmp_path: Path) -> None:
    """A run that is taken up from another checkout gets that checkout's package; a link that is right stays."""
    link = package_path(tmp_path) / "hpcq"
    link.unlink()
    link.symlink_to("/elsewhere/hpcq")
    assert package_path(tmp_path) == link.parent
    assert link.readlink() == PACKAGE
    assert list(link.parent.iterdir()) == [link]
