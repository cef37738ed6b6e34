"""`hpcq report --format html` and `--figures`: files, streams and exit codes."""

from __future__ import annotations

from tests.command_line import Hpcq
from tests.unit.cli.test_gate import score


def test_the_page_has_the_gate_and_the_attempts_of_the_run(finished: Hpcq) -> None:
    """One file with the checks of the gate and the attempts in the run's folder; the gate decides the exit code."""
    score(finished, "same")
    (finished.folder / "policy.toml").write_text("margin_points = 0.1\n")
    done = finished(
        "report",
        "rehearsal",
        "--format",
        "html",
        "--output",
        "page.html",
        "--gate",
        "policy.toml",
        "--figures",
        "plots",
    )
    assert (done.code, done.out) == (1, "")
    assert "Wrote differences.svg, " in done.err
    assert "Wrote page.html" in done.err
    page = (finished.folder / "page.html").read_text(encoding="utf-8")
    assert '<section id="gate"><h2>' in page
    assert '<section id="attempts"><h2>' in page
    assert 'class="bar end-done"' in page
    assert (finished.folder / "plots" / "differences.svg").is_file()


def test_figures_need_a_run_and_a_folder(finished: Hpcq) -> None:
    """Exit code 2 without a run; a file at the path of the folder is an error without a traceback."""
    done = finished("report", "--claims", "published", "--figures", "plots")
    assert (done.code, done.out) == (2, "")
    done = finished("report", "rehearsal", "--figure-formats", "pdf")
    assert (done.code, done.out) == (2, "")
    assert "add --figures DIR" in done.err
    score(finished, "same")
    done = finished("report", "rehearsal", "--figures", "manifest.toml")
    assert done.code in (1, 2, 3)
    assert "Traceback" not in done.err
    assert "manifest.toml" in done.err
