"""Evaluation: requests from lm-eval's own tasks, answered by a backend, scored centrally from stored responses."""
