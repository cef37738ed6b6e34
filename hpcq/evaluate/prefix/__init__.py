"""Prefix sharing: plan forward passes so that each common prefix of requests is computed once.

No engine here: an engine follows the plan (`planner.py`, `forward_pass.py`) and makes no decisions of its own.
"""
