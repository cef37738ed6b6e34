"""Prefix sharing: from log-likelihood requests to a plan of forward passes that computes every shared prefix once.

No engine here: an engine follows the plan (`planner.py`, `forward_pass.py`) and makes no decisions of its own.
"""
