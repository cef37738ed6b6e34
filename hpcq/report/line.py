"""Identity of a line of a report's main table: the run and the variant."""

Line = tuple[str, str]
"""Name of the run and id of the variant."""
