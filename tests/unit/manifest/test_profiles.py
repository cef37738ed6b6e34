"""Cluster profiles: where they are found, what they say, and what is wrong with them."""
# ruff: noqa: E501 (each sentence stands on one line, as its user reads it)

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpcq.catalog.gpus import find_gpu, gpu_names
from hpcq.core.errors import ManifestError
from hpcq.manifest.profiles import GpuClass, load_profile, local_profile

SMALL = """\
name = "small"
scheduler = "slurm"
[gpu_classes.h100]
gpu = "H100-80"
gpus_per_node = 8
cpus_per_node = 96
memory_gib = 1000
"""


def test_the_local_profile_is_this_machine() -> None:
    """'local' offers the cores that this process may use, for every role, and some units at once."""
    profile = load_profile("local", Path())
    assert profile == local_profile()
    assert profile.gpu_classes["cpu"].cpus_per_node == len(os.sched_getaffinity(0))
    assert profile.gpu_classes["cpu"].device is None
    assert 1 <= (profile.local.parallel_units or 0) <= len(os.sched_getaffinity(0))


def test_auto_is_local_without_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """'auto' is this machine where there is no sbatch, and asks for a profile where there is."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert load_profile("auto", Path()).scheduler == "local"
    (tmp_path / "sbatch").touch(mode=0o755)
    with pytest.raises(ManifestError) as refusal:
        load_profile("auto", Path())
    assert str(refusal.value) == (
        "'auto' found Slurm's sbatch but no profile; `hpcq init --from-sinfo` writes one: name its path."
    )


def test_a_profile_is_sought_beside_the_manifest_first(tmp_path: Path) -> None:
    """The manifest's folder comes before the working directory, and that before the checkout's own profiles."""
    (tmp_path / "beside").mkdir()
    for folder in ("beside/", ""):
        Path(f"{folder}small.toml").write_text(SMALL.replace("small", f"{folder}small"))
    assert load_profile("small.toml", Path("beside")).name == "beside/small"
    assert load_profile("small.toml", Path("elsewhere")).name == "small"
    assert load_profile(str(tmp_path / "small.toml"), Path("beside")).name == "small"
    assert load_profile("clusters/paper.toml", Path()).name == load_profile("paper.toml", Path()).name == "paper"


def test_the_studys_cluster_is_known() -> None:
    """The profile of the study has its four kinds of GPUs, in the numbers of its section 4."""
    classes = load_profile("clusters/paper.toml", Path()).gpu_classes
    assert {name: (row.gpu, row.gpus_per_node) for name, row in classes.items()} == {
        "h100": ("H100-80", 8),
        "a100": ("A100-80", 4),
        "rtx6000ada": ("RTX6000Ada-48", 4),
        "a6000": ("A6000-48", 4),
    }
    assert classes["h100"].device == find_gpu("H100-80")


def test_defaults_leave_the_choice_to_slurm() -> None:
    """What a profile does not say is not asked for, and a class serves every role."""
    Path("small.toml").write_text(SMALL)
    profile = load_profile("small.toml", Path())
    h100 = profile.gpu_classes["h100"]
    assert (h100.partition, h100.features, h100.throttle, h100.cpus_per_unit) == (None, None, None, None)
    assert h100.roles == ("evaluate", "quantize", "merge")
    assert profile.slurm.time_limit_minutes == 60


CASES: dict[str, tuple[str, str]] = {
    "no classes": ('name = "x"\nscheduler = "slurm"\n', ": gpu_classes: is missing. The kinds of nodes, by names of your own."),
    "no gpu": (SMALL.replace('gpu = "H100-80"\n', ""), ":3: gpu_classes.h100.gpu: is missing: say which GPU the class has, one of " + ", ".join(gpu_names()) + "."),
    "no count": (SMALL.replace("gpus_per_node = 8\n", ""), ":3: gpu_classes.h100.gpus_per_node: is missing: a class with a GPU says how many a node has."),
    "unknown key": (SMALL + "partitoin = 'x'\n", ":8: gpu_classes.h100.partitoin: unknown key; allowed here are cpus_per_node, cpus_per_unit, features, gpu, gpus_per_node, gres_type, max_minutes, memory_gib, memory_gib_per_unit, nodes, partition, roles, throttle. Did you mean 'partition'?"),
    "negative": (SMALL + "throttle = -1\n", ":8: gpu_classes.h100.throttle: must be 1 or more, not -1."),
    "role": (SMALL + "roles = ['evaluation']\n", ":8: gpu_classes.h100.roles: must be one of evaluate, quantize, merge, not 'evaluation'. Did you mean 'evaluate'?"),
    "roles": (SMALL + "roles = ['evaluate', 'merge']\n", ":3: gpu_classes: no class has the role 'quantize'; add it to the roles of one."),
    "too many cpus": (SMALL + "cpus_per_unit = 97\n", ":8: gpu_classes.h100.cpus_per_unit: must not be above cpus_per_node (96)."),
    "too much memory": (SMALL + "memory_gib_per_unit = 1001\n", ":8: gpu_classes.h100.memory_gib_per_unit: must not be above memory_gib (1000)."),
    "slurm on local": (SMALL.replace('"slurm"', '"local"') + "[slurm]\nqos = 'x'\n", ":8: slurm: has no meaning where scheduler = 'local'."),
    "local on slurm": (SMALL + "[local]\nparallel_units = 2\n", ":8: local: has no meaning where scheduler = 'slurm'."),
    "extra": (SMALL + "[slurm.extra]\nnice = 1.5\n", ":9: slurm.extra.nice: must be text, a whole number, true or false, not 1.5."),
    "our option": (SMALL + "[slurm.extra]\nreservation = 'r'\naccount = 'a'\n", ":10: slurm.extra.account: is an option that hpcq sets itself; use slurm.account."),
    "our option of a class": (SMALL + "[slurm.extra]\nmem = '1G'\n", ":9: slurm.extra.mem: is an option that hpcq sets itself; use gpu_classes.NAME.memory_gib_per_unit."),
    "our own option": (SMALL + "[slurm.extra]\nrequeue = false\n", ":9: slurm.extra.requeue: is an option that hpcq sets itself; leave it out."),
    "no option": (SMALL + "[slurm.extra]\n'mail user' = 'me'\n", ":9: slurm.extra.mail user: is no long option of sbatch, such as 'reservation'."),
    "dashes": (SMALL + "[slurm.extra]\n'--reservation' = 'me'\n", ":9: slurm.extra.--reservation: is no long option of sbatch, such as 'reservation'."),
    "line break": (SMALL + '[slurm.extra]\n"x=1\\ny" = 1\n', ":9: slurm.extra.x=1\ny: is no long option of sbatch, such as 'reservation'."),
    "no name": (SMALL + "[slurm.extra]\n'' = 1\n", ":9: slurm.extra.: is no long option of sbatch, such as 'reservation'."),
    "variables": (SMALL + "[environments.core.variables]\nN = 1\n", ":9: environments.core.variables.N: must be text, not 1."),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES)
def test_a_wrong_profile_gets_its_sentence(text: str, expected: str) -> None:
    """Each mistake is told with the profile's own line, and no other problem is invented."""
    Path("mine.toml").write_text(text)
    with pytest.raises(ManifestError) as refusal:
        load_profile("mine.toml", Path())
    assert refusal.value.problems == ("mine.toml" + expected,)


def test_a_class_for_cpus_has_no_device() -> None:
    """A class without GPUs is one for CPUs."""
    assert GpuClass(cpus_per_node=4, memory_gib=8).device is None


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "WANDB_API_KEY", "hf_token", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "MY_CREDENTIALS", "TOKEN_2"],
)
def test_a_secret_in_a_profile_is_refused_wherever_it_stands(tmp_path: Path, name: str) -> None:
    """Each place is told with its line and key, and the cure; the value is not told again."""
    path = tmp_path / "profile.toml"
    path.write_text(
        SMALL.replace(
            '"slurm"\n',
            f'"slurm"\n[slurm]\nsetup = ["export {name}=hush"]\nextra = {{ export = "ALL,{name}=hush" }}\n',
        )
        + f'[environments.core]\nsetup = ["{name}=\'hush\' run"]\nvariables = {{ {name} = "hush" }}\n'
    )
    with pytest.raises(ManifestError) as refusal:
        load_profile(str(path), Path())
    told = (
        f"'{name}' speaks of a secret, which would be kept in locks and in scripts of jobs. Export it in the shell that "
        "submits: Slurm carries it to the jobs; or let setup source a file that you alone can read."
    )
    assert refusal.value.problems == (
        f"{path}:4: slurm.setup: {told}",
        f"{path}:5: slurm.extra.export: {told}",
        f"{path}:12: environments.core.setup: {told}",
        f"{path}:13: environments.core.variables.{name}: {told}",
    )
    assert "hush" not in str(refusal.value)


def test_what_only_sounds_like_a_secret_is_allowed(tmp_path: Path) -> None:
    """Neither names that hold such words in others, nor places of secrets, nor values that come from elsewhere."""
    path = tmp_path / "profile.toml"
    path.write_text(
        SMALL
        + """
[environments.core]
setup = ['export HF_TOKEN=$(cat ~/.token)', 'export HF_TOKEN="$MINE"', 'unset HF_TOKEN; HF_TOKEN= run', '. ~/secrets']
variables = { MONKEY = "1", TOKENIZERS_PARALLELISM = "false", MAX_TOKENS = "8", HF_TOKEN_PATH = "/home/me/token" }
"""
    )
    assert len(load_profile(str(path), Path()).environments["core"].setup) == 4
