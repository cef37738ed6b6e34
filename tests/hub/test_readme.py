"""The commands of README's first page, typed as printed."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from tests.hub.repositories import MODEL
from tests.hub.user import User

README = Path(__file__).resolve().parents[2] / "README.md"
NAMED = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture
def _named_model(repositories: Path) -> None:
    """The model that the first manifest names: a small one with this id."""
    shutil.copytree(repositories / "models" / MODEL, repositories / "models" / NAMED, dirs_exist_ok=True)


@pytest.mark.usefixtures("_named_model", "hub")
def test_the_commands_of_the_readme_work_as_typed(user: User) -> None:
    """`init`, `stage` and `submit` end with a report that has both variants and the commit of the model."""
    block = README.read_text(encoding="utf-8").partition("```\nhpcq init")[2].partition("```")[0]
    commands = [shlex.split(line, comments=True)[1:] for line in f"hpcq init{block}".splitlines()]
    assert [command[0] for command in commands] == ["init", "stage", "submit"]
    outputs = [user.succeed(*command).out for command in commands]
    assert all(f"\n{variant} " in outputs[-1] for variant in ("bf16", "fp8-dynamic"))
    assert f"{NAMED}: main is commit " in outputs[-1]
