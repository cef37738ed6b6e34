"""Generated parts of the documents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generate import BEGIN, END, ROOT, first_sentence, generated_parts, replace_generated_part


@pytest.mark.parametrize(
    "name",
    [
        "CONTRIBUTING.md",
        "docs/manifest.md",
        "docs/cluster.md",
        "docs/fit.md",
        "docs/trust.md",
        "docs/families.md",
        "docs/scores.md",
        "docs/claims.md",
    ],
)
def test_generated_parts_are_current(name: str) -> None:
    """The document is what `make docs` writes; run it and commit the result if this fails."""
    document = (ROOT / name).read_text(encoding="utf-8")
    assert replace_generated_part(document, generated_parts()[ROOT / name]) == document


def test_every_module_is_listed_once() -> None:
    """CONTRIBUTING.md has one line for each module of hpcq, below its package."""
    sections = re.split(r"^#### `(.*)/`$", generated_parts()[ROOT / "CONTRIBUTING.md"], flags=re.MULTILINE)[1:]
    listed = [
        f"{package}/{module}.py"
        for package, section in zip(sections[::2], sections[1::2], strict=True)
        for module in (*re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE), "__init__")
    ]
    assert sorted(listed) == sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "hpcq").rglob("*.py"))


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Tasks of lm-eval 0.4.13's (tasks.toml). Not all.\n\nMore.", "Tasks of lm-eval 0.4.13's (tasks.toml)"),
        ("A sentence that\ncontinues in the next line.\n\nMore.", "A sentence that continues in the next line"),
        ("Lock: one at a time. `flock` is used.", "Lock: one at a time"),
    ],
)  # fmt: skip
def test_the_first_sentence_of_a_docstring_is_taken(docstring: str, sentence: str, tmp_path: Path) -> None:
    """Periods in numbers and names do not end it, line ends do not either."""
    module = tmp_path / "module.py"
    module.write_text(f'"""{docstring}\n"""\n', encoding="utf-8")
    assert first_sentence(module) == sentence


def test_a_module_without_docstring_is_an_error(tmp_path: Path) -> None:
    """The message names the file."""
    (tmp_path / "module.py").write_text("x = 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"module\.py: add a docstring"):
        first_sentence(tmp_path / "module.py")


def test_text_around_the_generated_part_is_kept() -> None:
    """What precedes BEGIN and follows END stays; without END the part ends with the document."""
    assert replace_generated_part(f"a\n{BEGIN}old{END}b\n", "new") == f"a\n{BEGIN}new{END}b\n"
    assert replace_generated_part(f"a\n{BEGIN}old\n", "new\n") == f"a\n{BEGIN}new\n"
    with pytest.raises(ValueError, match="one marker is needed"):
        replace_generated_part("a\n", "new")
