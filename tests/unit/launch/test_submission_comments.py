"""The folder of a submission in the comment of its job."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcq.launch.submissions import submission_folder
from tests.slurm.synthetic_units import layout_at

LAYOUT = layout_at(Path("/projects/my project"), name="run")
FOLDER = LAYOUT.launcher_logs / "evaluate-h100-1a2b3c.0.x_y9"


@pytest.mark.parametrize("comment", ["{}", "cost centre 17 {}", "{} checked by the site", "a=/b/ {} |c"])
def test_text_of_the_site_around_the_folder_is_skipped(comment: str) -> None:
    """A site may require text in the comment, or append its own."""
    assert submission_folder(LAYOUT, comment.format(FOLDER)) == FOLDER


LOGS = LAYOUT.launcher_logs


@pytest.mark.parametrize("comment", ["", "cost centre 17", f"{LOGS}/", f"{LOGS}/ x", f"{FOLDER}/y", f"{LOGS.parent}/x"])
def test_other_comments_name_no_folder(comment: str) -> None:
    """Comments of other runs, other programs, and other paths."""
    assert submission_folder(LAYOUT, comment) is None
