"""LaTeX tables, compiled by pdfLaTeX: no error, nothing wider than the text or higher than a page."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hpcq.report.clean_text import clean_table
from hpcq.report.latex import LINES, latex_tables
from hpcq.report.table import Column, Table
from tests.conftest import IN_CI
from tests.unit.report.test_formats import NASTY_NAMES

DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs,graphicx}
\begin{document}
Text.
\input{tables}
\end{document}
"""
TASKS = (
    "arc_challenge", "hellaswag", "mmlu", "truthfulqa_mc2", "winogrande", "gsm8k", "leaderboard_ifeval",
    "leaderboard_bbh", "leaderboard_math_hard", "leaderboard_gpqa", "leaderboard_musr", "leaderboard_mmlu_pro",
)  # fmt: skip
COSTS = ("GB on disk", "quantize", "evaluate", "tokens computed")
SCRIPTS = (
    "\\input{/etc/passwd}",
    "\\write18{touch pwned}",
    "^^5cinput",
    "?` !` ``x'' ,, << >>",
    "=1+1",
    "日本",
    "שלום",
    "Ωß÷×Ðé",
)


@pytest.fixture
def compiled(tmp_path: Path):  # noqa: ANN201 (a function)
    """Return a function that compiles tables and returns the log."""
    if shutil.which("pdflatex") is None:
        assert not IN_CI
        pytest.skip("pdflatex is not installed (Debian: texlive-latex-recommended)")

    def run(*tables: Table) -> str:
        (tmp_path / "tables.tex").write_text(latex_tables(list(map(clean_table, tables))), encoding="utf-8")
        (tmp_path / "main.tex").write_text(DOCUMENT)
        subprocess.run(
            ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "-no-shell-escape", "main.tex"],
            cwd=tmp_path, env={**os.environ, "max_print_line": "1000"}, check=False, capture_output=True,
        )  # fmt: skip
        assert not (tmp_path / "pwned").exists()
        log = (tmp_path / "main.log").read_text(errors="replace")
        assert (tmp_path / "main.pdf").is_file(), log[-3000:]
        return log

    return run


def problems(log: str) -> list[str]:
    """Return what pdfLaTeX says about errors, and about boxes and floats that are too large."""
    return re.findall(r"^(?:!.*|Overfull.*|LaTeX Warning: Float too large.*|Missing character.*)$", log, re.MULTILINE)


def study(variants: int, notes: int) -> tuple[Table, Table]:
    """Return tables as of a study: scores of all tasks with costs, and one line per variant and task."""
    names = [f"Llama-3.1-8B-Instruct smoothquant-w8a8-{number}" for number in range(variants)]
    scores = Table(
        title="study: score \N{PLUS-MINUS SIGN} standard error (difference from unquantized), percent",
        columns=(
            Column(name="variant"),
            *(Column(name=task, detail="n=1172") for task in TASKS),
            *(Column(name=cost) for cost in COSTS),
        ),
        lines=tuple(
            (name, *["62.3 \N{PLUS-MINUS SIGN}1.4 (\N{MINUS SIGN}1.2\N{DAGGER} \N{DOWNWARDS ARROW}) [61.0] ^D"] * 12,
             *["\N{EN DASH}"] * 4)
            for name in names
        ),
        notes=("A note about the scores, and what they mean for 5 % of the items. " * 4,) * notes,
        last_together=4,
    )  # fmt: skip
    differences = Table(
        title="Difference from unquantized on the same items",
        columns=tuple(Column(name=name) for name in ("variant", "task", "difference", "recovery", "verdict")),
        lines=tuple(
            (name, task, "\N{MINUS SIGN}1.2 (\N{MINUS SIGN}2.0 to +0.4)", "98.1", "cannot tell")
            for name in names
            for task in TASKS
        ),
        notes=("Recovery: score divided by the unquantized one's.",),
        left_columns=2,
    )
    return scores, differences


@pytest.mark.parametrize(("variants", "notes"), [(4, 12), (9, 40)])
def test_a_study_fits_the_pages(compiled, variants: int, notes: int) -> None:  # noqa: ANN001 (a fixture)
    """12 tasks and 4 costs of 4 and 9 variants, with 12 and 40 notes of 5 lines: nothing is too wide or too high."""
    log = compiled(*study(variants, notes))
    assert problems(log) == []
    pages = re.search(r"Output written on main.pdf \((\d+) page", log)
    assert pages
    assert int(pages[1]) > 2


def test_every_name_compiles_and_does_nothing(compiled) -> None:  # noqa: ANN001 (a fixture)
    """Names with markup, commands, unknown characters, control characters, and a megabyte of text are only typeset."""
    names = (*NASTY_NAMES, *SCRIPTS, "\x1b[31mred\x07", "a\u202eb", "\ud800", "x" * 1_000_000, "a b " * 250_000)
    table = Table(
        title=SCRIPTS[0],
        columns=(Column(name=SCRIPTS[0], detail=SCRIPTS[1]), Column(name="[x]"), Column(name="*")),
        lines=tuple((name, name, name) for name in names),
        notes=names,
    )
    log = compiled(table)
    assert [line for line in problems(log) if not line.startswith("Overfull")] == []


def test_the_source_says_what_it_needs(tmp_path: Path) -> None:
    """The first line names the packages; captions have no notes; no float has more lines than a page."""
    source = latex_tables(study(9, 12))
    assert r"\usepackage{booktabs,graphicx}" in source.splitlines()[0]
    captions = re.findall(r"\\caption\{(.*)\}", source)
    assert captions
    assert not any("A note" in caption for caption in captions)
    for content in source.split(r"\end{table}"):
        assert content.count(r" \\") <= LINES
    assert source.count(r"\begin{table}") == source.count(r"\end{table}") == len(captions)
    assert not list(tmp_path.iterdir())
