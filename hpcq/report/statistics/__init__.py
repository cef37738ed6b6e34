"""Statistics of scores: intervals, paired comparisons with a baseline, verdicts, detectable effects."""
