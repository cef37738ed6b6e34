"""Execution of code that a model wrote, for tasks that are scored by tests (HumanEval, MBPP)."""
