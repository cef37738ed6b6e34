"""A run as a cluster leaves it, its report and its page; and a browser."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcq.report.formats import Report, page_content
from hpcq.report.make_report import MergedRun, build_report
from hpcq.report.page.content import PageContent
from hpcq.report.page.make_page import make_page
from tests.browser import Browser, find_browser, open_browser
from tests.conftest import IN_CI
from tests.report_sample import Sample, write_sample

N = 60


@pytest.fixture(scope="session")
def sample_run(tmp_path_factory: pytest.TempPathFactory) -> MergedRun:
    """Return a run of two models, with marks, missing scores, failures and preemptions."""
    return write_sample(tmp_path_factory.mktemp("report") / "study", Sample(n=N))


@pytest.fixture(scope="session")
def report(sample_run: MergedRun) -> Report:
    """Return the report of the run."""
    return build_report([sample_run])


@pytest.fixture(scope="session")
def content(report: Report) -> PageContent:
    """Return what the page shows."""
    return page_content(report)


@pytest.fixture
def small(content: PageContent) -> PageContent:
    """Return the same content without what needs evidence and comparisons."""
    return dataclasses.replace(content, answers=(), suites=(), fidelity=(), closeness=None)


@pytest.fixture(scope="session")
def page_file(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page as a file."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(make_page(page_content(report)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return a browser; skip the test without one, or fail it in continuous integration."""
    program = find_browser()
    if program is None:
        if IN_CI:
            pytest.fail("chromium is not installed; tests must not be skipped with CI=true", pytrace=False)
        pytest.skip("needs chromium: apt-get install chromium")
    with open_browser(program) as opened:
        yield opened
