"""Evaluation: requests from lm-eval's own tasks, answered by a back end, scored centrally from stored responses."""
