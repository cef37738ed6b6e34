"""Prompts with more few-shot examples than the data of the hub have."""

from __future__ import annotations

import pytest

from tests.hub.manifests import SMALL
from tests.hub.repositories import ITEMS
from tests.hub.user import User

SENTENCE = (
    f"tasks.options.arc_challenge.num_fewshot: {ITEMS + 1} is more than the {ITEMS} items that 'arc_challenge' has for"
    " few-shot examples."
)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("verb", ["stage", "submit"])
def test_too_many_examples_are_refused_as_soon_as_the_data_are_staged(user: User, verb: str) -> None:
    """The first command that brings the data counts them, before any unit runs; afterwards `plan` refuses, too."""
    manifest = user.hpcq.write(f"{SMALL}\n[tasks.options.arc_challenge]\nnum_fewshot = {ITEMS + 1}\n")
    user.succeed("plan", manifest)
    for command in (verb, "plan"):
        refused = user(command, manifest)
        assert (refused.code, SENTENCE in refused.err) == (2, True), refused.err
    assert not [*user.hpcq.folder.glob("runs/small/attempts/*")]
