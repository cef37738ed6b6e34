"""The request tree: from the requests of log-likelihood tasks to a plan that computes every shared prefix once.

Knows tokens and texts; must not know any engine: an engine follows the plan (`schedule.py`) and decides nothing.
"""
