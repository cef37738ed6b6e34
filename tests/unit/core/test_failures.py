"""Failure classes and their exit codes."""

from __future__ import annotations

from hpcq.core.failures import EXIT_CODES, Failure, classify_exit_code


def test_exit_codes_map_back_to_their_class() -> None:
    """Each class that a worker can exit with has a distinct code, different from success and from signals."""
    assert len(set(EXIT_CODES.values())) == len(EXIT_CODES)
    assert all(classify_exit_code(code) is failure for failure, code in EXIT_CODES.items())
    assert classify_exit_code(137) is Failure.KILLED
    assert [classify_exit_code(code) for code in (0, 1, 2, 143)] == [None] * 4
