"""Text of jobs and files on its way to a terminal."""

from __future__ import annotations

import pytest

from hpcq.core.sentences import one_line, terminal_text

OUTPUTS = {
    "loss 1.0\n\tdone\n": "loss 1.0\n\tdone\n",
    "\x1b[31mred\x1b[0m": "red",
    "\x1b]0;title\x07text": "text",
    "\x1b]52;c;cm0gLXJmIH4=\x1b\\text": "text",
    "10%\r20%\r\n": "10%\n20%\n",
    "a\x08\x07\x9bb": "a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}b",
    "user\u202etxt.exe": "user\N{REPLACEMENT CHARACTER}txt.exe",
    "größer, 模型, ✓": "größer, 模型, ✓",
}


@pytest.mark.parametrize("output", OUTPUTS, ids=ascii)
def test_a_terminal_obeys_nothing_in_a_job_s_output(output: str) -> None:
    """Observed: escape sequences in a job's log reached the terminal: titles, the clipboard, hidden text."""
    assert terminal_text(output) == OUTPUTS[output]


def test_a_reason_is_one_line() -> None:
    """Line breaks and control characters become spaces."""
    assert one_line("it\x1b[2J\nfailed\u2028here ") == "it [2J failed here"
