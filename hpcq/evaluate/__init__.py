"""Evaluation: requests made by lm-eval's own tasks, answered by a back end, scored centrally from what was stored."""
